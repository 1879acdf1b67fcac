"""What a rank makes of errors that nobody understood, and of packages it does without."""

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from workloads.errors import EXIT_FAILED, EXIT_RETRY, UserError
from workloads.launch.rank import explain, sentence
from workloads.processes import own_command, quick_imports, start_of_node

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[/gloo/pair.cc] Connection closed by peer [127.0.0.1]:4711"), EXIT_RETRY),
        (OSError("No route to host"), EXIT_RETRY),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), EXIT_FAILED),
        (ValueError("connection reset by peer"), EXIT_FAILED),
    ],
)
def test_a_lost_peer_is_worth_a_retry_and_a_defect_is_not(error: Exception, code: int) -> None:
    found, sentence = explain(error)
    assert found == code
    assert str(error) in sentence


class _Broken(Dataset[int]):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> int:
        raise self.error


@pytest.mark.parametrize("kind", [UserError, ValueError])
def test_what_a_data_loader_s_process_says_comes_without_its_traceback(
    kind: type[Exception],
) -> None:
    loader = DataLoader(_Broken(kind("expected a: step, found none")), num_workers=1)
    with pytest.raises(kind, match="Traceback") as caught:
        next(iter(loader))
    assert sentence(caught.value) == "expected a: step, found none"
    assert sentence(kind("Caught in the rain")) == "Caught in the rain"
    assert explain(caught.value)[1] == f"{kind.__name__}: expected a: step, found none"


def test_a_package_left_out_is_not_imported_by_libraries() -> None:
    code = (
        "import sys; from workloads.launch.rank import leave_out; leave_out('wandb');"
        "from transformers import is_wandb_available; from accelerate import utils;"
        "assert not is_wandb_available() and not utils.is_wandb_available();"
        "assert not any(name.startswith('wandb.') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_are_not_interrupted_and_collecting_goes_on_after_a_failed_one() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        assert not gc.isenabled()
        importlib.import_module("workloads.no_such_module")
    assert gc.isenabled() and gc.get_freeze_count() > 0
    gc.unfreeze()


def test_the_command_is_named_as_it_can_be_typed_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    beside = tmp_path / ".venv" / "bin" / "tatara"
    beside.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(beside.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert own_command() == "tatara"  # not installed: its name is all there is
    beside.touch(mode=0o755)
    assert own_command() == ".venv/bin/tatara"
    monkeypatch.chdir(beside.parent)
    assert own_command() == "tatara"
    monkeypatch.chdir("/")
    assert own_command().endswith("/.venv/bin/tatara")
    monkeypatch.setenv("PATH", str(beside.parent))
    assert own_command("train", "profiles/demo.yaml", "data.format={a}") == (
        "tatara train profiles/demo.yaml 'data.format={a}'"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["train", "profiles/recipes/vla-24gb.yaml", "train.seed=1", "--resume", "a"],
            "scripts/start_training.sh vla-24gb train.seed=1 --resume a",
        ),
        (["monitor", "demo/a"], "scripts/monitor_training.sh demo/a"),
        (
            ["report", "outputs/demo/a"],
            "docker compose run --rm --no-deps demo-master report outputs/demo/a",
        ),
    ],
)
def test_in_a_container_the_command_is_the_host_s(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    """O-A8: there is no .venv beside a container."""
    monkeypatch.setenv("TATARA_SERVICE", "demo-master")
    assert own_command(*arguments) == said


def test_how_a_lost_node_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-A9: its container with the settings that it had, or its host."""
    assert start_of_node(1) == "start it there with NODE_RANK=1 and MASTER_ADDR set"
    monkeypatch.setenv("TATARA_SERVICE", "demo-master")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")  # one container on each of several hosts
    assert start_of_node(1) == "start it there with NODE_RANK=1 and MASTER_ADDR set"
    monkeypatch.setenv("MASTER_ADDR", "demo-master")
    assert start_of_node(1) == "start it again: docker compose start demo-worker"
