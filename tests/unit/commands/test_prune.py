"""`tatara prune`: what may go is shown with sizes, and nothing goes without --yes."""

import json
from pathlib import Path

import pytest

from workloads.cli import main
from workloads.run import Owner, Run

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # no docker
    for name in ("TATARA_OUTPUTS", "TATARA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def made(folder: Path, name: str, *events: str) -> Run:
    run = Run(folder / "outputs" / "demo" / name)
    for step, is_whole in ((4, True), (8, True), (12, True), (16, False)):
        checkpoint = run.checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"x" * 100_000)
        if is_whole:
            (checkpoint / "complete.json").write_text("{}")
    run.events.write_text("".join(json.dumps({"event": name}) + "\n" for name in events))
    return run


def left(run: Run) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


ALL = ["checkpoint-12", "checkpoint-16", "checkpoint-4", "checkpoint-8"]


def test_nothing_goes_without_yes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(folder, "a", "started", "finished")
    (folder / ".cache" / "inductor").mkdir(parents=True)
    (folder / ".cache" / "inductor" / "x.so").write_bytes(b"x" * 50_000)
    (folder / ".cache" / "huggingface").mkdir()
    (folder / ".cache" / "huggingface" / "model").write_bytes(b"x" * 50_000)
    assert main(["prune"]) == 0
    told = capsys.readouterr().out
    assert left(run) == ALL
    assert "checkpoint-4  (checkpoint-12 is newer)" in told and "KiB" in told
    assert "checkpoint-16  (never completed)" in told and "checkpoint-12  (" not in told
    assert ".cache/inductor" in told and "huggingface" not in told
    assert "remove it with: tatara prune checkpoints caches --yes" in told


def test_what_a_save_leaves_is_listed_where_it_holds_something(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staging = made(folder, "a", "started", "finished").checkpoints / ".staging"
    staging.mkdir()
    assert main(["prune", "checkpoints"]) == 0
    assert ".staging" not in capsys.readouterr().out
    (staging / "model.safetensors").write_bytes(b"x")
    assert main(["prune", "checkpoints"]) == 0
    assert ".staging  (never completed)" in capsys.readouterr().out


def test_the_newest_stays_and_runs_that_may_go_on_keep_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = made(folder, "a", "started", "finished", "evaluated", "exported")
    others = [
        made(folder, "b", "started", "training"),
        made(folder, "c", "started", "stopped"),
        made(folder, "d", "finished", "started"),  # gone on with
        made(folder, "e"),
    ]
    (folder / ".cache" / "inductor").mkdir(parents=True)
    (folder / ".cache" / "inductor" / "x.so").write_bytes(b"x")
    assert main(["prune", "checkpoints", "--keep", "2", "--yes"]) == 0
    assert left(done) == ["checkpoint-12", "checkpoint-8"]
    assert all(left(run) == ALL for run in others)
    assert (folder / ".cache" / "inductor" / "x.so").is_file()
    assert "removed " in capsys.readouterr().out
    assert main(["prune", "--yes"]) == 0
    assert left(done) == ["checkpoint-12"] and not (folder / ".cache" / "inductor").exists()
    capsys.readouterr()
    assert main(["prune"]) == 0 and capsys.readouterr().out == "nothing may go\n"


def test_the_best_checkpoint_stays(folder: Path) -> None:
    run = made(folder, "a", "finished")
    losses = {4: 2.5, 8: 3.5, 10: 0.5, 12: 3.0}  # none was saved at 10
    rows = [json.dumps({"step": step, "eval_loss": loss}) for step, loss in losses.items()]
    run.evaluations.write_text("\n".join(rows) + "\n")
    assert main(["prune", "checkpoints", "--yes"]) == 0
    assert left(run) == ["checkpoint-12", "checkpoint-4"]


def test_downloads_go_only_where_they_are_named(folder: Path) -> None:
    model = folder / ".cache" / "huggingface" / "model"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"x")
    assert main(["prune", "--yes"]) == 0 and model.is_file()
    assert main(["prune", "downloads", "--yes"]) == 0 and not model.exists()


def test_a_run_that_a_process_has_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(folder, "a", "finished")
    with Owner(run):
        assert main(["prune", "checkpoints", "--yes"]) == 1
    assert left(run) == ALL and "left: " in capsys.readouterr().err


def test_what_people_put_beside_checkpoints_stays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(folder, "a", "finished")
    elsewhere = folder / "big" / "checkpoint-2"
    elsewhere.mkdir(parents=True)
    (run.checkpoints / "checkpoint-2").symlink_to(elsewhere)
    (run.checkpoints / "checkpoint-8").rename(run.checkpoints / "the good one")
    (run.checkpoints / "checkpoint-²").mkdir()
    (run.checkpoints / "notes.txt").write_text("mine")
    for name in ("damaged-checkpoint-1", ".staging"):
        (run.checkpoints / name).mkdir()
        (run.checkpoints / name / "model").write_bytes(b"x" * 5000)
    assert main(["prune", "checkpoints", "--yes"]) == 0
    mine = ["checkpoint-2", "checkpoint-²", "notes.txt", "the good one"]
    assert left(run) == sorted([*mine, "checkpoint-12"])
    assert "damaged-checkpoint-1  (set aside, not used)" in capsys.readouterr().out


def test_a_run_with_two_names_counts_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(folder, "a", "finished")
    run.path.with_name("latest").symlink_to(run.path.name)
    assert main(["prune", "checkpoints", "--json", "--yes"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert left(run) == ["checkpoint-12"]


def test_caches_stay_while_a_run_trains_and_where_they_are_links(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".cache/inductor", "big"):
        (folder / name).mkdir(parents=True)
        (folder / name / "x").write_bytes(b"x")
    (folder / ".cache" / "huggingface").symlink_to(folder / "big")
    run = made(folder, "a")
    (run.path / "status").mkdir()
    run.write_status(0, {"rank": 0})
    assert main(["prune", "caches", "downloads", "--yes"]) == 0
    assert "outputs/demo/a is training" in capsys.readouterr().err
    run.write_status(0, {"rank": 0, "code": 0})
    assert main(["prune", "caches", "downloads", "--yes"]) == 0
    assert "huggingface: a link to" in capsys.readouterr().err
    assert not (folder / ".cache" / "inductor").exists() and (folder / "big" / "x").is_file()


def test_mistakes_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(folder, "a", "finished")
    for words in (["everything"], ["--keep", "0"]):
        assert main(["prune", *words]) == 2
        assert "expected " in capsys.readouterr().err
    assert main(["prune", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {item["kind"] for item in found} == {"checkpoints"}
    assert all(item["size"] > 0 and item["removed"] is False for item in found)
