"""bench/gpu/run.sh as far as it goes without parts that train: install, limits, resume, summary."""

import csv
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import _part_planned, bundle, record, run
from bench.gpu._parts import PARTS, Part
from bench.gpu._sft_cases import Case
from bench.gpu._summary import page, summary
from bench.gpu._train import STILL, config_of, shape_of
from bench.gpu.part import Report
from tests.support.own_peaks import own_planned_mib
from workloads.engine.training.memory import memory_facts

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
CHECKS = [{"name": "it learns", "passed": True, "found": "2 → 1"}]


def result(status: str = "passed", **more: Any) -> dict[str, Any]:
    machine = {"card": more.pop("card", None), "python": "3.12.3", "packages": {"torch": "2.11.0"}}
    own = {
        "status": status,
        "checks": CHECKS,
        "figures": {"tokens/s": 7},
        "memory": [],
        "notes": [],
    }
    ran_on = machine["card"] or "CPU, tiny shapes"
    return {**own, "title": "a part", "seconds": 3.0, "machine": machine, "ran_on": ran_on, **more}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Place:
    """A part of these tests is a shell command instead of one of bench.gpu.part."""
    found = run.Place(tmp_path, "cpu")
    found.results.mkdir(parents=True)
    return found


def as_command(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    popen = run.subprocess.Popen

    def start(command: list[str], **kwargs: Any) -> Any:
        file = command[command.index("--result") + 1]
        return popen(["bash", "-c", script, "part", file], **kwargs)

    monkeypatch.setattr(run.subprocess, "Popen", start)


@pytest.mark.parametrize(
    ("script", "limit", "status", "said"),
    [
        ("""echo '{"status": "passed", "checks": []}' >"$1\"""", 20, "passed", None),
        ("echo the last words; kill -9 $$", 20, "failed", "ended with -9 and no result"),
        ("sleep 60 & wait", 0.3, "failed", "did not end within 0 seconds"),
    ],
    ids=["answers", "dies", "hangs"],
)
def test_a_part_costs_only_itself(
    script: str, limit: float, status: str, said: str | None, place: run.Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    as_command(monkeypatch, script)
    begun = time.monotonic()
    found = run.run_part(PARTS[0], place, {"PATH": "/usr/bin:/bin"}, limit)
    assert time.monotonic() - begun < 30
    assert found["status"] == status and found["part"] == PARTS[0].name
    assert said is None or said in found["error"]
    assert json.loads(place.result(PARTS[0].name).read_text()) == found


def test_what_has_a_result_is_not_run_again_and_a_budget_ends_a_call(
    place: run.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def note(part: Part, place: run.Place, env: Any, limit: float) -> dict[str, Any]:
        ran.append(part.name)
        place.result(part.name).write_text(json.dumps(result()))
        return result()

    monkeypatch.setattr(run, "run_part", note)
    place.result(PARTS[0].name).write_text(json.dumps(result()))
    assert run.run_parts(PARTS[:3], place, {}, time.monotonic() + 100) == []
    assert ran == [part.name for part in PARTS[1:3]]
    left = run.run_parts(PARTS[:5], place, {}, time.monotonic() + 1)
    assert left == [part.name for part in PARTS[3:5]] and len(ran) == 2


def test_a_call_ends_with_archive_summary_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_has_what_is_needed", lambda env, device: True)
    monkeypatch.setattr(run, "environment", lambda device, work: {})
    results = tmp_path / "work" / "cpu" / "results"
    results.mkdir(parents=True)
    for part in PARTS:
        (results / f"{part.name}.json").write_text(json.dumps(result()))
    words = ["--device", "cpu", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert run.main(words) == run.DONE
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(found["parts"]) == [part.name for part in PARTS] and found["left"] == []
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "On a CPU, with tiny shapes" in text and "| CPU, tiny shapes | passed" in text
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        assert "results/card.json" in archive.getnames()
    # Its own result and those after it are gone, and there is no time for any.
    last = PARTS[-1].name
    assert run.main([*words, "--from", last, "--budget", "1"]) == run.LEFT
    assert f"left for another call: {last}" in capsys.readouterr().out
    (results / f"{last}.json").write_text(json.dumps(result("failed", error="it broke")))
    assert run.main(words) == run.FAILED


def test_a_namespace_without_a_network_gets_its_loopback() -> None:
    """As in `unshare -rn bench/gpu/run.sh`: ranks that meet on 127.0.0.1 would wait for minutes."""
    code = (
        "from bench.gpu._loopback import _answers, ensure_loopback as up; print(_answers(), up())"
    )
    words = ["unshare", "-rn", sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip("this account may make no namespaces")
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_the_parts_are_there_and_fit_into_half_an_hour() -> None:
    """Every part names a function; what matters most comes first and takes most of the time."""
    for part in PARTS:
        module, _, name = part.function.partition(":")
        text = (ROOT / "bench" / "gpu" / f"{module}.py").read_text(encoding="utf-8")
        assert f"def {name}(report: Report)" in text and part.least <= part.limit and part.paths


def test_a_run_is_recorded_by_path_card_and_date(tmp_path: Path) -> None:
    """A CPU's run replaces no "never run"; a later run of a card takes the place of its parts."""
    for device, card in (("cpu", None), ("cuda", "NVIDIA H100 80GB HBM3")):
        results = tmp_path / device
        results.mkdir()
        row = {"peak_allocated_mib": 100.0, "planned_allocated_mib": 101.0}
        failed = result("failed", card=card, error="it broke at /srv/x/y/file.py:3")
        for name, found in (("planned", result(card=card, memory=[row])), ("nan", failed)):
            (results / f"{name}.json").write_text(json.dumps(found))
        record.keep({**summary(results, device), "date": "2026-11-26"}, tmp_path / "kept")
    runs = record.kept(tmp_path / "kept")
    lines = record.table(runs).splitlines()
    planned = [line for line in lines if line.startswith("| planned against")]
    assert [line.split("|")[3].strip() for line in planned] == [
        "NVIDIA H100 80GB HBM3",
        "CPU, tiny shapes",
    ]
    assert "2026-11-26 | torch 2.11.0 | passed (1 checks) |" in planned[0]
    assert any("a step with a NaN" in line and "failed: it broke" in line for line in lines)
    assert "/srv/x" not in record.table(runs)
    assert sum("never run" in line for line in lines) == sum(len(p.paths) for p in PARTS) - 2
    peaks = record.peaks(runs).splitlines()
    assert peaks[1] == "NVIDIA H100 80GB HBM3-0,2026-11-26,100.0,101.0" and len(peaks) == 2
    assert "# GPU run on" in page(runs[0])


def test_the_pages_are_as_the_record_writes_them() -> None:
    for path, text in record.pages(record.kept()).items():
        assert (path.read_text(encoding="utf-8") if path.exists() else "") == text


def test_a_bundle_is_of_locked_wheels_and_leaves_torch_to_the_machine() -> None:
    locked = bundle._locked()
    assert set(bundle.WANTED) <= set(locked) and "torch" not in locked
    assert not set(bundle.WANTED) & set(bundle.EXPECTED)
    for name in bundle.WANTED:
        assert "--hash=sha256:" in locked[name]
    for name, goes in (("cuda118", True), ("rocm72", True), ("cuda130", False), ("cpu", False)):
        library = f"bitsandbytes/libbitsandbytes_{name}.so"
        assert bool(bundle.LEFT_OUT.fullmatch(library)) is goes


def test_a_row_of_measured_memory_says_all_that_the_planner_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting of the run, written as CSV and read again, is planned as it was then."""
    monkeypatch.setattr(_part_planned._machine, "version", lambda name: "1")
    report = Report("cuda", tmp_path, "a card")
    rows = []
    for number, (batch, length, large, own) in enumerate(_part_planned.settings(report)):
        shape = dict(shape_of(report, large))
        case = Case("part", "", shape, length, batch, ())
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
        memory = memory_facts(config_of(case, folder, 3, {**STILL, **own}), 1)
        memory["measured"] = memory["planned"]
        rows.append(_part_planned._row(case, own, memory))
    assert len(rows) >= 20
    parts = {"planned": {"date": "2026-11-26", "memory": rows}}
    run = {"ran_on": "a card", "device": "cuda", "parts": parts}
    for row in csv.DictReader(io.StringIO(record.peaks([run]))):
        assert own_planned_mib(row) == pytest.approx(float(row["peak_allocated_mib"]), abs=0.01)


@pytest.mark.slow
def test_parts_answer_on_a_cpu(tmp_path: Path) -> None:
    """Real parts by the real command; all of them are run before a release."""
    work, out = tmp_path / "work", tmp_path / "out"
    words = ["--device", "cpu", "--work", str(work), "--out", str(out)]
    assert run.main([*words, "--parts", "card", "attention", "head"]) == run.DONE
    found = json.loads((out / "summary.json").read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("card", "attention", "head"), "passed"
    )
