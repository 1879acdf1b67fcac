"""The run directory: what is written, who may write it, what is found again."""

import errno
import fcntl
import json
import multiprocessing
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from workloads import run as runs
from workloads.config.merge import resolve
from workloads.engine.summary import rows_of
from workloads.errors import UserError
from workloads.launch.supervisor import Job, _target
from workloads.run import Owner, Run
from workloads.run.owner import OWNER

pytestmark = pytest.mark.unit
DEMO = Path("profiles/demo.yaml")


def started(path: Path) -> Run:
    config, provenance = resolve(DEMO, {"LEARNING_RATE": "3e-5"})
    run = Run(path)
    runs.start(run, config, provenance, {"hosts": ["a"]})
    return run


def test_config_and_provenance_survive_the_run_directory(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    assert run.config() == resolve(DEMO, {"LEARNING_RATE": "3e-5"})[0]
    dump = json.loads((run.path / "config.json").read_text())
    assert dump["provenance"]["optim.learning_rate"] == "environment LEARNING_RATE"
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["profile"] == "demo" and manifest["hosts"] == ["a"]
    runs.write_manifest(run, {"data": {"rows": 3}})
    assert json.loads((run.path / "manifest.json").read_text())["hosts"] == ["a"]


def test_rows_are_json_even_where_the_loss_is_not_a_number(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    run.metric({"step": 1, "loss": float("nan")})
    run.metric({"step": 2, "loss": 1.5})
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert rows[0]["loss"] == "nan" and rows[1]["loss"] == 1.5
    assert rows[0]["monotonic"] <= rows[1]["monotonic"]


def test_rows_of_metrics_all_have_a_loss(tmp_path: Path) -> None:
    run = Run(tmp_path / "demo" / "one")
    run.make()
    run.metric({"step": 1, "loss": 2.5})
    run.eval_metric({"step": 1, "eval_loss": 2.4})
    run.metric({"step": 2, "loss": 2.0})
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in lines] == [(1, 2.5), (2, 2.0)]
    (look,) = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    assert (look["step"], look["eval_loss"]) == (1, 2.4)
    assert [row["step"] for row in rows_of(run)] == [1, 1, 2]


def test_a_line_of_metrics_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    run.metric({"step": 1, "loss": 2.5})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "los')
    started(run.path)  # goes on
    run.metric({"step": 2, "loss": 2.0})
    assert [(row["step"], row["loss"]) for row in rows_of(run)] == [(1, 2.5), (2, 2.0)]


def test_a_line_that_finds_no_room_leaves_no_half_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up within a line, and has room again later."""
    run = started(tmp_path / "r")
    run.metric({"step": 1, "loss": 2.5})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.metrics.stat().st_size + 9, before[1]))
    try:
        run.metric({"step": 2, "loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run.metric({"step": 3, "loss": 1.5})
    assert [(row["step"], row["loss"]) for row in rows_of(run)] == [(1, 2.5), (3, 1.5)]
    assert "metrics.jsonl could not be written: No space left" in capsys.readouterr().err


def hold(path: str, ready: object, release: object) -> None:
    with Owner(Run(Path(path))):
        ready.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path / "r"), ready, release))
    other.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match=f"process {other.pid} on "), Owner(Run(tmp_path / "r")):
        pass
    release.set()
    other.join(30)
    for _ in range(2):  # given back at the end of each
        with Owner(Run(tmp_path / "r")):
            pass


def test_a_file_system_without_locks_is_no_other_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Owner(Run(tmp_path / "r")):
        pass
    assert "on a file system without locks (Function not implemented)" in capsys.readouterr().err


def test_a_run_that_one_may_not_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r" / OWNER).mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written: Is a dir"), Owner(Run(tmp_path / "r")):
        pass


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1'])
def test_a_manifest_that_was_cut_is_named(tmp_path: Path, text: str) -> None:
    run = started(tmp_path / "r")
    (run.path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json:1"):
        runs.write_manifest(run, {"data": {}})


def test_runs_are_found_by_id_path_and_latest(tmp_path: Path) -> None:
    for when, name in enumerate(("b", "a")):
        run = started(tmp_path / "demo" / name)
        os.utime(run.path / "config.json", (when, when))
    assert runs.find(tmp_path, "demo", "latest").id == "a"
    assert runs.find(tmp_path, "demo", "b").id == "b"
    assert runs.find(tmp_path, "demo", str(tmp_path / "demo" / "b")).id == "b"
    assert runs.find(tmp_path, "*", "demo").id == "a", "the newest of a profile"
    assert runs.find(tmp_path, "*", "demo/b").id == "b"
    started(tmp_path / "other" / "bcd")
    assert runs.find(tmp_path, "*", "bc").id == "bcd", "the start of an id"
    for wanted, told in (("c", "found no 'c'; runs there: b, a"), ("", "found no ''")):
        with pytest.raises(UserError, match=told):
            runs.find(tmp_path, "demo", wanted)
    started(tmp_path / "other" / "bce")
    with pytest.raises(UserError, match="found 2 runs of that name"):
        runs.find(tmp_path, "*", "bc")


def job(outputs: Path, **env: str) -> Job:
    config, provenance = resolve(DEMO, {})
    return Job(config, provenance, {"TATARA_OUTPUTS": str(outputs), **env}, ["train"])


def test_a_run_is_resumed_where_its_profile_has_its_runs_and_nowhere_else(tmp_path: Path) -> None:
    """A copy in another folder would be claimed, and a new run begun in the profile's own."""
    own = started(tmp_path / "demo" / "a")
    resumed = replace(job(tmp_path), resume=str(own.path))
    assert _target(resumed).path == own.path
    (tmp_path / "link").symlink_to(own.path)
    assert _target(replace(resumed, resume=str(tmp_path / "link"))).path == own.path
    for place in (tmp_path / "mine" / "a", tmp_path / "backup" / "demo" / "a"):
        started(place)
        with pytest.raises(UserError, match="take the profile 'demo', or set TATARA_OUTPUTS"):
            _target(replace(resumed, resume=str(place)))


def test_heartbeats_are_read_back_by_rank(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    run.write_status(1, {"phase": "training"})
    run.write_status(0, {"phase": "saving"})
    (run.path / "status" / "2.json").write_text("{half")
    for odd in ("0 (copy).json", "1².json"):  # of a file manager, or a person
        (run.path / "status" / odd).write_text("{}")
    assert {rank: one["phase"] for rank, one in run.statuses().items()} == {
        0: "saving",
        1: "training",
    }


def test_a_run_behind_a_link_to_nothing_is_named_as_that(tmp_path: Path) -> None:
    """O-A13: as a container sees runs on another disk."""
    (tmp_path / "demo").symlink_to("/big/demo")
    with pytest.raises(UserError, match="created: .*demo is a link to /big/demo, which is not the"):
        Run(tmp_path / "demo" / "a").make()
