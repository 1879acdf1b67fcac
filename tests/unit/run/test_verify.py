"""A run or a copy of it: what is whole, damaged, missing, and what cannot be told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workloads.cli import main
from workloads.run import Run, integrity
from workloads.run.events import Event
from workloads.run.verify import all_whole, verify

pytestmark = pytest.mark.unit


def sealed(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (path / "config.json").write_text("{}")
    integrity.seal(path, {})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "outputs" / "demo" / "20260101-120000-abcd")
    run.make()
    (run.path / "config.json").write_text("{}")
    for step in (4, 8, 40):
        sealed(run.checkpoints / f"checkpoint-{step}")
        run.event(Event.CHECKPOINT, step=step)
    sealed(run.final)
    run.event(Event.EXPORTED, path=str(run.final))
    return run


def states(folder: Path) -> dict[str, str]:
    return {item.name: item.state for item in verify(folder)}


WHOLE = {
    "checkpoints/checkpoint-4": "whole",
    "checkpoints/checkpoint-8": "whole",
    "checkpoints/checkpoint-40": "whole",
    "final": "whole",
}


@pytest.mark.runs("tatara verify RUN")
def test_a_whole_run_and_a_copy_of_it(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run.path, tmp_path / "copy")
    for folder in (run.path, copy):
        assert states(folder) == WHOLE
        assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{copy}: whole"


@pytest.mark.parametrize("place", ["final", "checkpoints/checkpoint-4"])
@pytest.mark.parametrize("name", ["model.safetensors", "complete.json"])
def test_a_flipped_bit_is_damage(
    run: Run, place: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.path / place / name
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    assert states(run.path) == {**WHOLE, place: "damaged"}
    assert main(["verify", str(run.path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    (damaged,) = [item for item in told["found"] if item["state"] == "damaged"]
    assert not told["whole"]
    assert damaged["notes"][0].startswith(f"{name}: ")


def test_a_copy_that_was_cut_short(run: Run) -> None:
    (run.final / "complete.json").unlink()
    (run.checkpoints / "checkpoint-8" / "complete.json").unlink()
    (run.checkpoints / "checkpoint-4" / "config.json").unlink()
    found = verify(run.path)
    assert {item.name: item.state for item in found} == {
        **WHOLE,
        "checkpoints/checkpoint-4": "damaged",
        "checkpoints/checkpoint-8": "no seal",
        "final": "no seal",
    }
    assert not all_whole(found)


def test_what_the_run_says_it_has_and_is_not_there_is_missing(run: Run) -> None:
    shutil.rmtree(run.checkpoints / "checkpoint-40")
    shutil.rmtree(run.final)
    assert states(run.path)["checkpoints/checkpoint-40"] == "missing"
    assert states(run.path)["final"] == "missing"
    assert not all_whole(verify(run.path))


def test_older_ones_that_were_deleted_or_set_aside_are_no_damage(run: Run) -> None:
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    newest = run.checkpoints / "checkpoint-40"
    newest.rename(newest.with_name("damaged-checkpoint-40"))
    assert states(run.path) == {
        "checkpoints/checkpoint-8": "whole",
        "checkpoints/damaged-checkpoint-40": "left out",
        "final": "whole",
    }
    assert all_whole(verify(run.path))


def test_one_folder_alone(run: Run, tmp_path: Path) -> None:
    assert states(run.final) == {"final": "whole"}
    assert states(run.checkpoints / "checkpoint-8") == {"checkpoint-8": "whole"}
    assert list(states(run.checkpoints)) == list(WHOLE)[:3]
    saved = shutil.copytree(run.checkpoints, tmp_path / "saved")
    assert states(saved)["saved/checkpoint-8"] == "whole"
    (run.final / "complete.json").unlink()
    model = shutil.copytree(run.final, tmp_path / "model")
    assert states(model) == {"model": "no seal"}


def test_a_copy_of_a_part(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.final, tmp_path / "copy" / "final")
    assert states(tmp_path / "copy") == {"final": "whole"}
    (tmp_path / "copy" / "events.jsonl").write_text('3\n{"event": "checkpoint"}\n{"event": "che')
    assert states(tmp_path / "copy") == {"final": "whole"}


def test_a_file_that_no_seal_lists_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.final / "model.gguf").write_text("x")
    assert main(["verify", str(run.final)]) == 0
    assert "also there, in no seal: model.gguf" in capsys.readouterr().out


def test_nothing_saved_is_not_whole(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.make()
    assert main(["verify", str(run.path)]) == 1


def test_what_is_no_run_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TATARA_OUTPUTS", str(run.path.parent.parent))
    assert main(["verify", str(run.path.parent)]) == 2
    assert "expected a run, a checkpoint" in capsys.readouterr().err
    assert main(["verify", "elsewhere"]) == 2
    assert "no run 'elsewhere'" in capsys.readouterr().err
    assert main(["verify", "latest"]) == 0


def test_verifying_takes_no_torch(run: Run) -> None:
    code = f"import sys; from workloads.cli import main; main(['verify', {str(run.path)!r}])"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_change_keeps_the_other_digests(run: Run) -> None:
    with integrity.changing(run.final, "config.json", "Modelfile"):
        assert not (run.final / "complete.json").exists()
        (run.final / "config.json").write_text("[]")
        (run.final / "Modelfile").write_text("FROM .")
    assert integrity.verify_checkpoint(run.final) == []
    # Damage from before is not sealed over.
    (run.final / "model.safetensors").write_bytes(bytes(10240))
    with integrity.changing(run.final, "config.json"):
        (run.final / "config.json").write_text("{}")
    (damage,) = integrity.verify_checkpoint(run.final)
    assert damage.startswith("model.safetensors: ")


def test_a_change_that_is_cut_short_leaves_no_seal(run: Run) -> None:
    with pytest.raises(OSError), integrity.changing(run.final, "config.json"):
        raise OSError
    assert states(run.path)["final"] == "no seal"


def test_an_export_of_before_gets_no_seal(run: Run) -> None:
    (run.final / "complete.json").unlink()
    with integrity.changing(run.final, "config.json"):
        (run.final / "config.json").write_text("[]")
    assert states(run.path)["final"] == "no seal"
