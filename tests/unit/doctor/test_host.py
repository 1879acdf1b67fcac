"""The machine beside its GPUs: network, shared memory, disk, ports, folders, .env."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.doctor_machine import ROOT, RTX_4090, Machine, llm, service
from workloads.doctor import host as looks
from workloads.environment import load

pytestmark = pytest.mark.unit


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("value", "exact", "expected"),
    [
        ("eth0", False, True),
        ("eth", False, True),  # NCCL: every name that begins so
        ("eth", True, False),  # Gloo: the name itself
        ("=eth", False, False),
        ("=eth0", False, True),
        ("enp5s0,lo", False, True),
        ("enp5s0", False, False),
        ("^docker,lo", False, True),
        ("^eth,lo", False, False),  # leaves nothing
    ],
)
def test_names_of_interfaces(value: str, exact: bool, expected: bool) -> None:
    assert looks.interface_exists(value, ["lo", "eth0"], exact) is expected


def test_an_interface_that_is_not_there(host: Machine) -> None:
    found = host.examine("demo", NCCL_SOCKET_IFNAME="lo", GLOO_SOCKET_IFNAME="nosuch0")
    assert "NCCL_SOCKET_IFNAME" not in found
    assert found["GLOO_SOCKET_IFNAME"].level == "error"
    assert found["GLOO_SOCKET_IFNAME"].needed.endswith("on this machine")


def test_a_container_on_its_own_network_has_eth0(host: Machine) -> None:
    names = {"NCCL_SOCKET_IFNAME": "enp5s0", "GLOO_SOCKET_IFNAME": "eth0"}
    host.docker({"demo-master": service("demo", 0, None, environment=names)})
    found = host.examine("demo")
    assert (
        found["NCCL_SOCKET_IFNAME"].needed == "one of eth0, lo, in a container on its own network"
    )
    assert "GLOO_SOCKET_IFNAME" not in found


@pytest.mark.parametrize(
    ("size", "verdict"), [(64 << 20, "error"), (512 << 20, "warning"), (1 << 30, "ok")]
)
def test_shared_memory_of_containers(host: Machine, size: int, verdict: str) -> None:
    host.gpus(*[RTX_4090] * 4)
    host.docker(llm(shm_size=str(size)))
    found = host.examine("llm-4090")["/dev/shm"]
    assert found.level == verdict
    if verdict != "ok":
        assert found.needed == "1 GiB for 4 GPU ranks and 2 loader processes each"
        assert found.fix == "TATARA_SHM_SIZE=16gb in .env"


def test_containers_without_a_size_get_the_engines(host: Machine) -> None:
    host.gpus(*[RTX_4090] * 4)
    host.docker(llm(shm_size=None))
    assert host.examine("llm-4090")["/dev/shm"].found == "64 MiB"


def test_a_plan_larger_than_the_disk(host: Machine) -> None:
    words = ["checkpoints.keep_last=100000", "model.name=meta-llama/Llama-3.2-1B-Instruct"]
    found = host.examine("llm-4090", *words)["disk"]
    assert found.level == "error" and "by the plan" in found.needed
    assert "checkpoints.keep_last=1" in found.fix
    assert host.examine("demo")["disk"].level == "ok"


def test_host_memory_of_all_nodes_that_share_it(host: Machine) -> None:
    host.docker({f"n{at}": service("demo", at, None) for at in range(2)}, MemTotal=2 << 30)
    found = host.examine("demo")["host memory"]
    assert (found.level, found.needed) == ("error", "6.0 GiB, by the plan")
    assert found.found.startswith("2.0 GiB")


def test_ports_that_are_taken(host: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = host.examine("demo", NODE_RANK="0", MASTER_PORT=str(port))["ports"]
        assert found.level == "error" and found.found.startswith(str(port))
        assert found.fix.startswith("MASTER_PORT=")
        other = host.examine("demo", NODE_RANK="1", MASTER_PORT=str(port))["ports"]
        assert other.level == "skipped"
        assert not looks.is_free(port)
    assert looks.is_free(port)


def test_ports_that_nobody_has_to_keep_free(host: Machine) -> None:
    assert host.examine("demo")["ports"].level == "ok"
    host.docker({"demo-master": service("demo", 0, None)})
    assert host.examine("demo")["ports"].level == "skipped"
    assert host.examine("demo", NODE_RANK="1")["ports"].level == "skipped"
    host.docker({"demo-master": service("demo", 0, None, network_mode="host")})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert host.examine("demo", NODE_RANK="0", MASTER_PORT=port)["ports"].level == "error"


def test_folders_left_to_another_user(host: Machine) -> None:
    """As an engine leaves them that makes a missing folder: root's, and not the caller's."""
    for name in ("outputs", ".cache"):
        (host.home / name).mkdir(mode=0o755)
    (host.home / ".cache").chmod(0o777)
    found = host.examine("demo", SUDO_UID="4001", SUDO_GID="4002")["folders"]
    assert found.level == "error"
    assert found.fix == f"sudo chown -R 4001:4002 {host.home / 'outputs'}"
    assert host.examine("demo")["folders"].level == "ok"


def test_containers_of_another_user(host: Machine) -> None:
    own = f"{os.getuid()}:{os.getgid()}"
    host.docker({"demo-master": service("demo", 0, None, user="4001:4001")})
    found = host.examine("demo")["user of containers"]
    assert (found.level, found.needed) == ("warning", own)
    host.docker({"demo-master": service("demo", 0, None, user=own)})
    assert host.examine("demo")["user of containers"].level == "ok"


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o644, "warning"), (0o640, "warning"), (0o600, "ok")]
)
def test_dotenv_is_its_owners(host: Machine, mode: int, verdict: str) -> None:
    dotenv = host.home / ".env"
    dotenv.write_text("MASTER_PORT=41000\n")
    dotenv.chmod(mode)
    found = host.examine("demo")[".env"]
    assert found.level == verdict
    assert found.fix == ("" if verdict == "ok" else "chmod 600 .env")


def test_dotenv_reaches_the_checks(host: Machine) -> None:
    (host.home / ".env").write_text("TATARA_OUTPUTS=elsewhere\n")
    assert "for elsewhere" in host.examine("demo")["disk"].found


def test_a_dotenv_without_python_dotenv(tmp_path: Path) -> None:
    """The plain reader takes what people write; run by a Python that sees no packages."""
    (tmp_path / ".env").write_text(
        "# a comment\nexport A=1\nB='two words' # why\nC=\"x#y\"\nD=plain # end\nE=\n"
        "HUGGINGFACE_API_KEY=hf_x\n"
    )
    code = (
        "from workloads.environment import load\n"
        "print(sorted(load({'A': '', 'D': 'shell'}).items()))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {"A": "1", "B": "two words", "C": "x#y", "D": "shell"}
    wanted |= {"HUGGINGFACE_API_KEY": "hf_x", "HF_TOKEN": "hf_x"}
    assert done.stdout.strip() == str(sorted(wanted.items()))
    with_package = load({"A": "", "D": "shell"}, tmp_path / ".env")
    assert with_package == wanted


MOUNTS = """\
/dev/vda1 / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
10.0.0.9:/export /lambda/nfs/mine nfs4 rw 0 0
overlay /pod overlay rw 0 0
/dev/vdb /with\\040blank ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "rented", "why"),
    [
        ("/home/me/outputs", False, ""),
        ("/home/me/outputs", True, "local disk of a Lambda instance"),
        ("/lambda/nfs/mine/outputs", True, ""),
        ("/dev/shm/outputs", False, "in memory"),
        ("/pod/outputs", False, "container's own layer"),
        ("/with blank/outputs", False, ""),
    ],
)
def test_a_disk_that_ends_with_the_machine(
    tmp_path: Path, place: str, rented: bool, why: str
) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    signs = [tmp_path] if rented else []
    found = looks.passing_disk(Path(place), {}, tmp_path / "mounts", signs)
    assert why in found if why else found == ""


def test_an_old_python_beside_one_that_fits_is_no_mistake(
    host: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ubuntu 22.04's python3 is 3.10, and set-up looks for python3.11 too."""
    monkeypatch.setattr(looks, "_OLDEST_PYTHON", (3, 99))
    there = {"TATARA_RUNTIME": "local"}
    assert host.examine(**there)["Python"].level == "error"
    script = host.home / "scripts" / "local_setup.sh"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\n[ "$*" = --python ] && echo /opt/python3.11\n')
    script.chmod(0o755)
    found = host.examine(**there)["Python"]
    assert (found.level, found.fix) == ("warning", "make setup")
    assert found.found.endswith("; set-up takes /opt/python3.11")
