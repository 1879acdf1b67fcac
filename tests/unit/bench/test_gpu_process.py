"""A part of bench/gpu/run.sh as a process: what it may do to itself, and to nothing else."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import _process
from bench.gpu._install import Refused
from bench.gpu._parts import PARTS
from bench.gpu._process import Place, end_left_over, run_part
from tests.support.gpu_parts import CHECKS, HALF, HANGS, as_command
from tests.support.waiting import until

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
ENV = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A part of these tests is a shell command instead of one of bench.gpu.part."""
    found = Place(tmp_path, "cpu")
    found.results.mkdir(parents=True)
    return found


@pytest.mark.parametrize(
    ("script", "limit", "status", "said"),
    [
        ("""echo '{"status": "passed", "checks": []}' >"$1\"""", 20, "passed", None),
        ("echo the last words; kill -9 $$", 20, "failed", "was ended by SIGKILL, as the system"),
        ("true", 20, "failed", "ended with 0 before its result was whole"),
        ("""echo '{"status": "pas' > "$1" """, 20, "failed", "ended with 0 before its result"),
        (f"{HALF}; kill -SEGV $$", 20, "failed", "was ended by SIGSEGV, before its result"),
        (f"{HALF}; {HANGS}", 0.5, "failed", "did not end within"),
    ],
    ids=["answers", "dies", "says nothing", "half a result", "dies on its way", "hangs"],
)
def test_a_part_costs_only_itself(
    script: str, limit: float, status: str, said: str | None, place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    as_command(monkeypatch, script)
    found = run_part(PARTS[0], place, {"PATH": "/usr/bin:/bin"}, limit)
    assert found["status"] == status and found["part"] == PARTS[0].name
    assert said is None or said in found["error"]
    assert found["checks"] == (CHECKS if HALF in script else [])  # what was found by then stays
    assert json.loads(place.result(PARTS[0].name).read_text()) == found


def test_what_a_killed_call_has_left_running_is_ended_by_the_next(place: Place) -> None:
    """kill -9 in the midst of a part, whose own first process may be gone, too."""
    code = (
        "import sys; from pathlib import Path; from bench.gpu import _process as run;"
        "from bench.gpu._parts import PARTS; popen = run.subprocess.Popen;"
        "run.subprocess.Popen = lambda c, **k: popen(['bash', '-c', sys.argv[2]], **k);"
        "run.run_part(PARTS[0], run.Place(Path(sys.argv[1]), 'cpu'), {'PATH': '/bin'}, 60)"
    )
    sleeps = place.work / "sleeps"
    words = [sys.executable, "-c", code, str(place.work), f"sleep 60 & : >'{sleeps}'; wait"]
    for is_first_gone in (False, True):
        call = subprocess.Popen(words, cwd=ROOT)
        until(lambda: place.running.is_file() and sleeps.exists())
        sleeps.unlink()
        group = json.loads(place.running.read_text())["pid"]
        call.kill()
        call.wait()
        if is_first_gone:
            os.kill(group, signal.SIGKILL)
        os.killpg(group, 0)
        end_left_over(place.running)
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
        assert not place.result(PARTS[0].name).exists() and not place.running.exists()


def test_a_number_that_another_process_has_by_now_is_left_alone(place: Place) -> None:
    other = subprocess.Popen(["sleep", "60"], process_group=0)
    try:
        for born in ("another start of the machine 1", f"{_process._born(other.pid)}0"):
            place.running.write_text(json.dumps({"pid": other.pid, "born": born}))
            end_left_over(place.running)
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_part_that_prints_without_end_is_ended_and_its_ends_are_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log goes into the archive after every part."""
    monkeypatch.setattr(_process, "MOST_PRINTED", 100_000)
    monkeypatch.setattr(_process, "KEPT_PRINTED", 1000)
    as_command(monkeypatch, f"{HALF}; echo first; yes more; sleep 60")
    found = run_part(PARTS[0], place, ENV, 60)
    assert found["status"] == "failed" and found["error"].startswith("printed more than")
    assert found["checks"] == CHECKS and not found["is_cut"]
    text = place.log(PARTS[0].name).read_text()
    assert text.startswith("first") and "bytes are left out" in text and len(text) < 2100
    assert "more\nmore\n" in found["log"][-20:]  # it may have been ended within a letter


def test_what_a_part_that_was_ended_has_written_goes_with_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of a training that hangs would fill the disk for the parts after it."""
    monkeypatch.setenv("RUNS", str(place.runs))
    as_command(monkeypatch, 'mkdir "$RUNS"; echo checkpoint > "$RUNS/model"; ' + HANGS)
    found = run_part(PARTS[0], place, {**ENV, "RUNS": str(place.runs)}, 0.5)
    assert found["is_cut"] and not place.runs.exists()


def test_a_part_that_waits_in_the_driver_ends_the_call(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be ended and holds the GPU; the next call finds it by its number."""
    as_command(monkeypatch, f"{HALF}; {HANGS}")
    monkeypatch.setattr(_process, "_end_group", lambda leader: None)
    monkeypatch.setattr(_process, "GONE_WITHIN", 0.1)
    with pytest.raises(Refused, match="it waits in the driver and holds the GPU"):
        run_part(PARTS[0], place, ENV, 0.5)
    found = json.loads(place.result(PARTS[0].name).read_text())
    assert found["status"] == "failed" and found["checks"] == CHECKS
    monkeypatch.undo()
    left = json.loads(place.running.read_text())["pid"]
    end_left_over(place.running)
    os.waitpid(left, 0)


def test_a_sandbox_that_tells_no_start_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(self: Path, *words: Any, **more: Any) -> str:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", hidden)
    assert _process._born(os.getpid()) == " "
