"""The engine: its age, whether it hands over a GPU, and whose uids its containers have."""

import json
from pathlib import Path

import pytest

from tests.support.doctor_machine import RTX_4090, Machine, llm, say, service
from workloads.doctor import containers
from workloads.host.engine import UNSUPPORTED, Engine
from workloads.host.services import Service

pytestmark = pytest.mark.unit
REFUSAL = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
BARE = ("io.containerd.runc.v2", "runc")


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.gpus(*[RTX_4090] * 4)
    machine.docker(llm())
    return machine


def test_an_engine_without_the_toolkit(host: Machine) -> None:
    host.docker(llm(), runtimes=BARE)
    found = host.examine("llm-4090")
    assert found["container toolkit"].level == "error"
    assert found["container toolkit"].found == "none; the engine's runtimes are: runc"
    assert "docs.nvidia.com/datacenter/cloud-native/container-toolkit/" in (
        found["container toolkit"].fix
    )
    assert found["GPU in containers"].level == "skipped"


def test_a_toolkit_that_the_engine_does_not_know(host: Machine) -> None:
    host.docker(llm(), runtimes=BARE)
    host.program(
        "nvidia-ctk", otherwise=say("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f2")
    )
    found = host.examine("llm-4090")["container toolkit"]
    assert found.level == "error" and found.found.startswith("1.17.8; ")
    assert found.fix == (
        "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
    )


def test_a_toolkit_beside_the_engine_is_enough(host: Machine) -> None:
    host.docker(llm(), runtimes=BARE)
    host.program("nvidia-container-runtime-hook", otherwise="exit 0")
    assert host.examine("llm-4090")["container toolkit"].level == "ok"


def test_an_engine_that_refuses_the_gpu(host: Machine) -> None:
    words = f"docker: Error response from daemon: {REFUSAL}.\n\nRun 'docker run --help' for more"
    host.docker(llm(), runtimes=BARE, run=f"{say(words)} >&2; exit 125")
    found = host.examine("llm-4090")["GPU in containers"]
    assert found.level == "error" and REFUSAL in found.found


def test_a_gpu_that_is_handed_over_and_the_torch_in_the_image(host: Machine) -> None:
    seen = "\n".join(f"GPU {at}: NVIDIA GeForce RTX 4090 (UUID: GPU-{at})" for at in range(4))
    host.docker(llm(), run=say(f"{seen}\ncuda: Optional[str] = '12.6'"))
    found = host.examine("llm-4090")
    assert found["GPU in containers"].found == "4 of 4 GPUs seen"
    assert "for CUDA 12.6 (the torch in tatara/llm-4090:local)" in found["NVIDIA driver"].needed


def test_a_container_that_lost_its_gpu(host: Machine) -> None:
    host.docker(llm(), run=f"{say('Failed to initialize NVML: Unknown Error')}; exit 255")
    found = host.examine("llm-4090")["GPU in containers"]
    assert found.level == "error" and found.fix == "sudo systemctl restart docker"


def test_the_reservation_is_what_counts(host: Machine) -> None:
    """An override without GPUs, such as compose.cpu.yaml, asks for no toolkit."""
    host.docker({"llm-master": service("llm-4090", 0, None)}, runtimes=BARE)
    found = host.examine("llm-4090")
    assert found["GPU"].found == "not needed: the services of llm-4090 reserve none"
    assert "container toolkit" not in found and "GPU in containers" not in found


def test_a_daemon_reload_that_would_take_the_gpu(tmp_path: Path) -> None:
    systemd = Engine("28.2.2", "2.40.0", cgroup_driver="systemd", cgroup_version="2")
    found = containers.cgroups(systemd, tmp_path)
    assert found.level == "warning" and "create-dev-char-symlinks" in found.fix
    (tmp_path / "195:255").symlink_to("/dev/nvidiactl")
    assert containers.cgroups(systemd, tmp_path).level == "ok"
    assert containers.cgroups(Engine("28.2.2", "2", cgroup_driver="cgroupfs")).level == "ok"


@pytest.mark.parametrize(
    ("facts", "check", "found"),
    [
        ({"ServerVersion": "19.03.15"}, "Docker Engine", "19.03.15"),
        ({"compose": "2.23.3"}, "Docker Compose", "2.23.3"),
    ],
)
def test_versions_too_old(host: Machine, facts: dict[str, str], check: str, found: str) -> None:
    host.docker(llm(), **facts)
    got = host.examine("llm-4090")[check]
    assert (got.level, got.found) == ("error", found)
    assert host.examine("llm-4090", TATARA_RUNTIME="local")[check].level == "warning"


@pytest.mark.parametrize("version", ["2.24.0", "v2.40.1", "5.0.1", "2.26.1-4"])
def test_versions_new_enough(host: Machine, version: str) -> None:
    host.docker(llm(), compose=version)
    assert host.examine("llm-4090")["Docker Compose"].level == "ok"


@pytest.mark.parametrize("option", ["name=rootless", "name=userns"])
def test_an_engine_whose_uids_are_others(host: Machine, option: str) -> None:
    host.docker(llm(), SecurityOptions=["name=seccomp,profile=default", option])
    found = host.examine("llm-4090")
    assert found["uids in containers"].level == "warning"  # a run takes .venv instead
    assert found["runtime"].found.startswith("local: the engine is rootless or remaps users")
    forced = host.examine("llm-4090", TATARA_RUNTIME="docker")["uids in containers"]
    assert forced.level == "error" and forced.found.endswith(UNSUPPORTED)


def test_podman_is_named_and_not_taken_for_an_engine(host: Machine) -> None:
    """O-C8: docker on PATH is podman's stand-in, or speaks with its socket (4.3.1, as printed)."""
    info = json.dumps({"host": {"arch": "amd64"}, "version": {"Version": "4.3.1"}})
    host.program("docker", f"'info --format {{{{json .}}}}') {say(info)} ;;")
    found = host.examine("demo")
    assert found["runtime"].found.startswith("local: no Docker engine to use: Podman 4.3.1")
    forced = host.examine("demo", TATARA_RUNTIME="docker")["Docker Engine"]
    assert forced.level == "error" and forced.found.endswith(UNSUPPORTED)
    info = json.dumps({"ServerVersion": "4.3.1", "SecurityOptions": ["name=seccomp"]})
    version = json.dumps({"Components": [{"Name": "Podman Engine", "Version": "4.3.1"}]})
    host.program(
        "docker",
        f"'info --format {{{{json .}}}}') {say(info)} ;;",
        f"'version --format {{{{json .Server}}}}') {say(version)} ;;",
    )
    assert host.examine("demo")["runtime"].found == found["runtime"].found
    assert "https://docs.docker.com/engine/install/" in forced.fix


def test_no_engine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    found = machine.examine("demo")
    assert found["runtime"].found == "local: no Docker engine to use: docker is not on PATH"
    assert found["Docker Engine"].level == "skipped"
    forced = machine.examine("demo", TATARA_RUNTIME="docker")["Docker Engine"]
    assert forced.level == "error" and "set TATARA_RUNTIME=local" in forced.fix


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("permission denied while trying to connect to the docker API", "usermod -aG docker"),
        ("Cannot connect to the Docker daemon. Is it running?", "sudo systemctl start docker"),
    ],
)
def test_an_engine_that_does_not_answer(tmp_path: Path, said: str, fix: str) -> None:
    machine = Machine(tmp_path)
    answer = json.dumps({"ServerVersion": "", "ServerErrors": [said]})
    machine.program("docker", f"'info '*) {say(answer)}; exit 1 ;;")
    found = machine.examine("demo")["Docker Engine"]
    assert found.level == "warning" and said in found.found and fix in found.fix


def test_what_compose_complains_of(host: Machine) -> None:
    text = (host.bin / "docker").read_text()
    wrong = "echo 'service llm-master: undefined volume' >&2; exit 15"
    start = text.index("'compose --profile '")
    end = text.index(";;", start)
    broken = text[:start] + f"'compose --profile '*) {wrong} " + text[end:]
    (host.bin / "docker").write_text(broken)
    found = host.examine("llm-4090")["compose.yaml"]
    assert (found.level, found.found) == ("error", "service llm-master: undefined volume")


def test_a_profile_without_a_service_runs_locally(host: Machine) -> None:
    host.docker({})
    facts = host.look("demo")
    assert (facts.runtime, facts.why) == ("local", "no service of compose.yaml runs demo")


def test_settings_are_those_of_the_service(host: Machine) -> None:
    """What an override file, .env and TATARA_ARGS set reaches the plan of the named profile."""
    more = {"environment": {"TATARA__TRAIN__EPOCHS": "7"}}
    services = llm(**more)
    services["llm-master"]["command"] = ["train", "profiles/demo.yaml", "train.log_every=3"]
    host.docker(services)
    config = host.look("llm-4090", "train.seed=5").config
    assert config is not None
    assert (config.name, config.train.epochs) == ("llm-4090", 7)
    assert (config.train.log_every, config.train.seed) == (3, 5)


def test_a_token_is_not_shown() -> None:
    made = Service("x", "y", (), {"HF_TOKEN": "hf_secret"})
    assert "hf_secret" not in repr(made)
