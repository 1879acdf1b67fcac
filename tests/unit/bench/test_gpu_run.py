"""bench/gpu/run.sh as far as it goes without parts that train: install, limits, resume, summary."""

import csv
import errno
import functools
import io
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from bench.gpu import (
    _install,
    _machine,
    _part_command,
    _part_peers,
    _part_planned,
    _players,
    _process,
    bundle,
    record,
    run,
)
from bench.gpu._parts import PARTS, Part
from bench.gpu._sft_cases import ONE_B, Case
from bench.gpu._summary import page, summary
from bench.gpu._train import STILL, config_of
from bench.gpu.part import Report
from tests.support.gpu_parts import HANGS, as_command, result
from tests.support.own_peaks import own_planned_mib
from workloads.config.merge import resolve
from workloads.engine.training.memory import memory_facts
from workloads.plan.advice import advice
from workloads.plan.estimate import estimate

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def place(tmp_path: Path) -> run.Place:
    """A part of these tests is a shell command instead of one of bench.gpu.part."""
    found = run.Place(tmp_path, "cpu")
    found.results.mkdir(parents=True)
    return found


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
    with pytest.raises(run.Refused, match="at least 5 seconds for a part"):
        run.run_parts(PARTS[:5], place, {}, time.monotonic() + 1)
    assert len(ran) == 2


def test_a_part_that_the_budget_ends_is_left_for_the_next_call(
    place: run.Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run again with a call for itself, and has failed where that does not do either."""
    monkeypatch.setattr(_process, "CPU_LEAST", 0)
    passes = """echo '{"status": "passed"}' >"$1\""""
    script = f"if [[ $1 == *card* ]]; then {passes}; else {HANGS}; fi"
    as_command(monkeypatch, script)
    ended: list[int] = []
    for left in ([PARTS[1].name], []):
        end = time.monotonic() + 3
        assert run.run_parts(PARTS[:2], place, {"PATH": "/usr/bin:/bin"}, end,
                             lambda: ended.append(1)) == left  # fmt: skip
    assert len(ended) == 3
    found = json.loads(place.result(PARTS[1].name).read_text())
    assert found["status"] == "failed" and "did not end within" in found["error"]


@pytest.mark.parametrize("spoilt", ["out", "cpu/lock"])
def test_what_cannot_be_written_is_said_plainly(
    spoilt: str, place: run.Place, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    as_here(monkeypatch, None)
    (place.work / "file").write_text("")
    (place.work / spoilt).symlink_to(place.work / "file" / "below")
    words = ["--device", "cpu", "--work", str(place.work), "--output", str(place.work / "out")]
    assert run.main(words) == run.REFUSED
    assert "expected to write and read below" in capsys.readouterr().err


def as_here(monkeypatch: pytest.MonkeyPatch, card: str | None) -> None:
    monkeypatch.setattr(run, "environment", lambda device, work: {})
    monkeypatch.setattr(run, "_card", lambda env, device: card)


def test_a_full_disk_ends_the_call_and_not_its_results(
    place: run.Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_here(monkeypatch, None)
    as_command(monkeypatch, "true")
    place.result("card").write_text(json.dumps(result()))

    def full(file: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(_process, "write_json", full)
    words = ["--device", "cpu", "--work", str(place.work), "--output", str(place.work / "out")]
    assert run.main(words) == run.REFUSED
    assert "No space left on device" in capsys.readouterr().err
    assert json.loads(place.result("card").read_text())["status"] == "passed"


def test_one_call_at_a_time(place: run.Place) -> None:
    with run._alone(place), pytest.raises(run.Refused, match="another at work"), run._alone(place):
        pass


def test_a_stopped_call_ends_with_what_it_has(
    place: run.Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C and TERM alike: the part is ended, the summary stands, and the next call goes on."""
    as_here(monkeypatch, None)
    as_command(monkeypatch, "kill -TERM $PPID; sleep 60")
    place.result("card").write_text(json.dumps(result()))
    words = ["--device", "cpu", "--work", str(place.work), "--output", str(place.work / "out")]
    assert run.main([*words, "--parts", "card", "train"]) == run.STOPPED
    assert "left for another call: train" in capsys.readouterr().out
    assert "train" in json.loads((place.work / "out" / "summary.json").read_text())["left"]
    assert not place.running.exists()


def test_a_call_goes_on_with_one_on_a_machine_that_is_gone(
    place: run.Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its archive; figures of two cards are never put together."""
    ran: list[str] = []
    monkeypatch.setattr(run, "run_parts", lambda wanted, place, *rest: ran.extend(
        part.name for part in wanted if not run._is_done(part, place)) or [])  # fmt: skip
    as_here(monkeypatch, None)
    place.result("card").write_text(json.dumps(result()))
    words = ["--device", "cpu", "--output", str(place.work / "out")]
    assert run.main([*words, "--work", str(place.work), "--parts", "card"]) == run.DONE
    archive = str(place.work / "out" / "results.tar.gz")
    words += ["--parts", "card", "train", "--earlier", archive]
    assert run.main([*words, "--work", str(place.work / "new")]) == run.DONE
    assert ran == ["train"]
    as_here(monkeypatch, "NVIDIA H200")
    assert run.main([*words, "--work", str(place.work / "other")]) == run.REFUSED
    assert "expected results of NVIDIA H200" in capsys.readouterr().err
    assert run.main([*words[:-1], __file__, "--work", str(place.work / "none")]) == run.REFUSED
    assert "expected the results.tar.gz of an earlier call" in capsys.readouterr().err


def test_a_call_ends_with_archive_summary_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_here(monkeypatch, None)
    results = tmp_path / "work" / "cpu" / "results"
    results.mkdir(parents=True)
    for part in PARTS:
        (results / f"{part.name}.json").write_text(json.dumps(result()))
    words = ["--device", "cpu", "--work", str(tmp_path / "work")]
    words += ["--output", str(tmp_path / "out")]
    assert run.main(words) == run.DONE
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(found["parts"]) == [part.name for part in PARTS] and found["left"] == []
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "On a CPU, with tiny shapes" in text and "| CPU, tiny shapes | passed" in text
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        assert "results/card.json" in archive.getnames()
    # Its own result and those after it are gone, and there is no time for any.
    last = PARTS[-1].name
    assert run.main([*words, "--from", last, "--budget", "1"]) == run.REFUSED
    assert f"left for {last}; give more" in capsys.readouterr().err
    assert not (results / f"{last}.json").exists() and (results / "card.json").exists()
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


def test_the_version_of_a_bundle_is_not_taken_for_an_interpreter(tmp_path: Path) -> None:
    """`make gpu-bundle PYTHON=3.12` in a fresh checkout: set-up has a PYTHON of its own."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name, script in (
        ("scripts/local_setup.sh", 'echo "set up with ${PYTHON-its own}"'),
        (".venv/bin/python", 'echo "$@"'),
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    # Not as a part of the make that runs the tests, whose directories it would tell.
    of_make = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "PYTHON")
    env = {name: value for name, value in os.environ.items() if name not in of_make}
    done = subprocess.run(
        ["make", "gpu-bundle", "PYTHON=3.12"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "set up with its own",
        "-m bench.gpu.bundle --python 3.12",
    ], done.stderr


def test_what_is_too_large_for_a_card_fits_by_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the plan, on the cards that the run is for, with rows enough for three steps."""
    LlamaConfig(**ONE_B, max_position_embeddings=8192).save_pretrained(tmp_path)
    monkeypatch.setattr(_part_command, "base_model", lambda report: tmp_path)
    for mib in (81559, 143771):
        card = SimpleNamespace(total_memory=mib << 20)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, card=card: card)
        found = _part_command._too_large(Report("cuda", tmp_path, "a card"))
        size = int(found["train.per_device_batch_size"])
        settings = {**_part_command.SETTINGS, **found, "model.name": str(tmp_path)}
        settings["train.per_device_batch_size"] = str(size // 2)
        words = [f"{name}={value}" for name, value in settings.items()]
        config, _ = resolve(ROOT / _part_command.PROFILE, {}, words)
        assert (estimate(config, 1, {}).total or 0) < 0.9 * card.total_memory
        assert size % 2 == 0 and size < 94  # 3,200 rows of 60 tokens make 94 sequences
        settings["train.per_device_batch_size"] = str(size)
        words = [f"{name}={value}" for name, value in settings.items()]
        config, _ = resolve(ROOT / _part_command.PROFILE, {}, words)
        fixes = "\n".join(advice(estimate(config, 1, {}), config, card.total_memory))
        assert fixes.count("train.") + fixes.count("adapter.") >= 3  # as the part looks for them


def a_bundle(folder: Path, python: str | None = None) -> Path:
    """A bundle with one small wheel, whose parts go to several places."""
    wheel = folder / "wheels" / "small-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small/__init__.py", "")
        archive.writestr("small-1.0.data/purelib/beside.py", "")
        archive.writestr("small-1.0.data/scripts/small", "")
        archive.writestr("small-1.0.dist-info/METADATA", "Name: small\nVersion: 1.0\n")
    here = ".".join(platform.python_version_tuple()[:2])
    facts = {"python": python or here, "requires": {"small": ["numpy<1", "pytest", "nowhere>=2"]}}
    facts["wheels"] = {wheel.name: {"sha256": _install.digest(wheel)}}
    (folder / "bundle.json").write_text(json.dumps(facts))
    return folder


def test_a_bundle_is_installed_once_by_python_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_install, "MACHINE", platform.machine())
    folder = a_bundle(tmp_path / "bundle")
    site = _install.installed(folder, tmp_path)
    assert site is not None and "installing 1 packages" in capsys.readouterr().out
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert names == {"small/__init__.py", "beside.py", "small-1.0.dist-info/METADATA",
                     "bundle.json"}  # fmt: skip
    assert _install.installed(folder, tmp_path) == site and not capsys.readouterr().out
    told = _install.unmet(site)
    assert [line.partition(", ")[0] for line in told] == [
        "small asks for numpy<1",
        "small asks for nowhere>=2",
    ]
    assert told[1].endswith("found none")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder, wheel: wheel.unlink(), "found none; copy the bundle again"),
        (lambda folder, wheel: wheel.write_bytes(b"PK"), "found another file of that name"),
        (lambda folder, wheel: (folder / "bundle.json").unlink(), "make the bundle again"),
        (lambda folder, wheel: (folder / "bundle.json").write_text("{"), "make the bundle again"),
    ],
    ids=["a wheel is missing", "a wheel is damaged", "no facts", "half of the facts"],
)
def test_a_bundle_that_is_not_whole_is_refused(
    spoil: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_install, "MACHINE", platform.machine())
    folder = a_bundle(tmp_path / "bundle")
    spoil(folder, next((folder / "wheels").iterdir()))
    with pytest.raises(run.Refused, match=said):
        _install.installed(folder, tmp_path)
    assert not list(tmp_path.glob("site-*/small"))


def test_a_bundle_for_another_python_or_processor_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_install, "MACHINE", platform.machine())
    assert _install.installed(a_bundle(tmp_path / "old", "3.8"), tmp_path) is None
    assert "is for Python 3.8" in capsys.readouterr().out
    monkeypatch.setattr(_install, "MACHINE", "another")
    assert _install.installed(a_bundle(tmp_path / "arm"), tmp_path) is None
    assert "on another, this is" in capsys.readouterr().out
    assert _install.installed(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(("python", "said"), [("false", "found false"), ("nowhere-3", "nowhere-3")])
def test_a_python_that_is_too_old_or_missing_is_named(python: str, said: str) -> None:
    done = subprocess.run(
        ["bash", ROOT / "bench/gpu/run.sh"], env={**os.environ, "PYTHON": python},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "expected Python 3.11 or newer" in done.stderr
    assert said in done.stderr


def test_packages_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as pandas and pyarrow, which no bundle carries."""
    monkeypatch.setattr(sys, "argv", ["-c", "cpu"])
    gone = ("pandas", "pyarrow")
    monkeypatch.setattr(_machine, "version", lambda name: None if name in gone else "1")
    with pytest.raises(SystemExit) as left:
        _machine.report()
    assert left.value.code == 2
    assert "expected pyarrow, pandas in this Python" in capsys.readouterr().err


class Line:
    """A player's end of a pipe: orders to read, answers that were sent."""

    def __init__(self, *orders: bool) -> None:
        self.orders, self.answers = list(orders), []  # type: ignore[var-annotated]

    def recv(self) -> bool:
        return self.orders.pop(0)

    def send(self, answer: Any) -> None:
        self.answers.append(answer)


def test_a_side_that_fails_costs_only_itself() -> None:
    def fail() -> None:
        raise ValueError("no kernel\nfor this card")

    line: Any = Line(True, True, False)
    _players._serve(line, fail)
    assert line.answers == ["ValueError: no kernel for this card"] * 2
    gone, _theirs = multiprocessing.Pipe()
    _theirs.close()
    process: Any = SimpleNamespace(join=lambda seconds: None, exitcode=-11)
    dead = _players.Player("dead", process, gone)
    compared: list[Any] = []
    turns, problems = _players.play([dead], 2, compared.append)
    assert turns == {"dead": []} and problems == {"dead": "its process ended with -11"}
    assert compared == [{}]


def test_speeds_beside_peers_are_kept_turn_by_turn(tmp_path: Path) -> None:
    """A part that its limit ends has those of the sides that have played."""
    report = Report("cuda", tmp_path, "a card", tmp_path / "b1.unfinished")
    players: list[Any] = []
    for name, rate in (("ours", 3.0), ("TRL", 2.0)):
        turn = SimpleNamespace(rate=rate, peak=7 << 20)
        play = functools.partial(lambda found: found, turn)
        players.append(SimpleNamespace(name=name, problem="", turns=[], play=play, end=print))
    seen: list[dict[str, Any]] = []

    def look(turns: Any) -> None:
        _part_peers._figures(report, turns)
        seen.append(json.loads((tmp_path / "b1.unfinished").read_text())["figures"])

    _players.play(players, 1, lambda first: None, look)
    assert seen[0] == {"ours: units/s": 3.0, "ours: MiB allocated": 7}
    assert seen[1]["ours is faster than TRL by"] == 1.5


def test_several_gpus_are_one_for_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Trainer would split batches among all that it sees; a lab's own paths stay."""
    monkeypatch.setattr(run, "BUNDLE", tmp_path)
    monkeypatch.setattr(run, "installed", lambda bundle, work: tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", "/opt/lab")
    for given, expected in ((None, "0"), ("3,1", "3"), ("GPU-7", "GPU-7")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        env = run.environment("cuda", tmp_path)
        assert env["CUDA_VISIBLE_DEVICES"] == expected
    assert env["PYTHONPATH"].split(os.pathsep) == [str(run.ROOT), str(tmp_path / "site"),
                                                   "/opt/lab"]  # fmt: skip


def test_a_row_of_measured_memory_says_all_that_the_planner_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting of the run, written as CSV and read again, is planned as it was then."""
    monkeypatch.setattr(_part_planned._machine, "version", lambda name: "1")
    report = Report("cuda", tmp_path, "a card")
    rows = []
    for number, setting in enumerate(_part_planned.settings(report)):
        shape, own = dict(setting.shape), setting.own
        case = Case("part", "", shape, setting.length, setting.batch, ())
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
    words = ["--device", "cpu", "--work", str(work), "--output", str(out)]
    assert run.main([*words, "--parts", "card", "attention", "head"]) == run.DONE
    found = json.loads((out / "summary.json").read_text())
    assert {name: part["status"] for name, part in found["parts"].items()} == dict.fromkeys(
        ("card", "attention", "head"), "passed"
    )
