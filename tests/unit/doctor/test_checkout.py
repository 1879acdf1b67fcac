"""The checkout on its engine: project, links, SELinux's labels, room for images."""

from pathlib import Path

import pytest

from tests.support.doctor_machine import RTX_4090, Machine, llm, service
from workloads.doctor import checkout as looks
from workloads.host import selinux
from workloads.host.checkout import set_up

pytestmark = pytest.mark.unit


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.docker({"demo-master": service("demo", 0, None)})
    (machine.home / ".env.example").write_text("# SEED=1\n")
    return machine


def test_the_project_is_shown_and_a_copied_dotenv_named(host: Machine) -> None:
    """O-A1"""
    assert host.examine("demo")["project"].level == "skipped"
    set_up(host.home.resolve(), {})
    found = host.examine("demo")["project"]
    assert found.level == "ok" and found.found.startswith("tatara-")
    text = (host.home / ".env").read_text()
    (host.home / ".env").write_text(text.replace(str(host.home.resolve()), "/home/other/tatara"))
    found = host.examine("demo")["project"]
    assert found.level == "warning" and found.fix == "make setup"
    assert found.found == ".env is that of /home/other/tatara, copied here"


def test_data_behind_a_link_is_named_before_the_start(host: Machine) -> None:
    """O-A13: an error where the profile or a setting names it, a warning elsewhere."""
    target = host.home.parent / "recordings"
    target.mkdir()
    (host.home / "data" / "logs").symlink_to(target)
    (host.home / "data" / "inside").symlink_to(host.home / "data" / "demo")
    found = host.examine("demo")["links"]
    assert found.level == "warning" and f"data/logs is a link to {target}" in found.found
    assert "inside" not in found.found
    found = host.examine("demo", "data.source=data/logs")["links"]
    assert found.level == "error" and f"-v {target}:/workspace/data/logs:ro" in found.fix
    assert "TATARA_DATA" in found.fix
    assert "links" not in host.examine("demo", TATARA_DATA=str(host.home / "data" / "demo"))
    assert "links" not in host.examine("demo", TATARA_RUNTIME="local")


def test_a_cache_or_runs_behind_a_link_are_named(host: Machine) -> None:
    """O-A13: whatever is mounted; links inside of a cache are its own business."""
    target = host.home.parent / "hub"
    target.mkdir()
    for name in (".cache/snapshots", "outputs"):
        (host.home / name).mkdir(parents=True)
    (host.home / ".cache/huggingface").symlink_to(target)
    (host.home / ".cache/snapshots/weights").symlink_to(target)
    found = host.examine("demo")["links"]
    assert found.level == "warning" and "weights" not in found.found
    assert f"-v {target}:/workspace/.cache/huggingface or" in found.fix
    assert found.fix.endswith("or set TATARA_CACHE to the folder itself")
    (host.home / ".cache/huggingface").unlink()
    (host.home / "outputs/demo").symlink_to(target)
    assert "or set TATARA_OUTPUTS to" in host.examine("demo")["links"].fix


def test_room_is_looked_for_where_the_engine_keeps_images(
    host: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-C12"""
    store = tmp_path / "store"
    store.mkdir()
    free = {"gib": 40}
    real = looks.shutil.disk_usage

    def usage(path: Path) -> object:
        found = real(path)
        return found._replace(free=free["gib"] << 30) if path == store else found

    monkeypatch.setattr(looks.shutil, "disk_usage", usage)
    host.gpus(RTX_4090)
    host.docker(llm(), DockerRootDir=str(store))
    assert host.examine("llm-4090")["image store"].level == "ok"
    free["gib"] = 12
    found = host.examine("llm-4090")["image store"]
    assert (found.level, found.needed) == ("warning", "25 GiB to build an image with CUDA")
    free["gib"] = 0
    assert host.examine("llm-4090")["image store"].level == "error"
    host.docker(llm(), DockerRootDir=str(store), run="exit 0")
    free["gib"] = 2
    assert host.examine("llm-4090")["image store"].level == "ok"
    host.docker(llm(), DockerRootDir="/on/another/machine")
    assert host.examine("llm-4090")["image store"].level == "skipped"


def test_selinux_names_what_no_script_labels(
    host: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-C9"""
    host.docker({"demo-master": service("demo", 0, None)}, SecurityOptions=["name=selinux"])
    enforce, token = tmp_path / "enforce", tmp_path / "my token"
    enforce.write_text("1")
    token.touch()
    monkeypatch.setattr(selinux, "_ENFORCE", enforce)
    labels = {"data": "system_u:object_r:container_file_t:s0"}
    monkeypatch.setattr(selinux, "label_of", lambda path: labels.get(path.name, ""))
    facts = host.look("demo", HF_TOKEN_FILE=str(token))
    with host.inside():
        found = looks._selinux(facts)
        assert found is not None and found.level == "error" and str(token) in found.found
        assert found.fix.startswith("sudo chcon -R -t container_file_t -l s0 data ")
        assert found.fix.endswith(f"'{token}'")
        labels |= {entry.name: labels["data"] for entry in Path("data").iterdir()}
        labels["my token"] = "u:r:container_ro_file_t:s0"
        found = looks._selinux(facts)
        assert found is not None and found.level == "ok"
        labels["my token"] = "u:r:container_file_t:s0:c12,c34"  # one container's own
        assert (found := looks._selinux(facts)) is not None and found.level == "error"
        enforce.write_text("0")
        assert looks._selinux(facts) is None
