"""Several runs over each other: in the browser, and in a page of the report."""

import json
from pathlib import Path

import pytest

from tests.support.run_files import ID, Tags, Written
from workloads import cli
from workloads.monitor.html import compare
from workloads.monitor.reading.settings import (
    differing_environment,
    differing_settings,
    read_facts,
)

pytestmark = pytest.mark.unit
EVIL = "<script>alert(1)</script>"


def run(outputs: Path, id: str, rate: float, **more: object) -> Written:
    """A finished run; its learning rate is the only setting of its own."""
    written = Written(outputs, id).begun().losses([4.0, 3.0, 2.0 + rate])
    written.run.metric({"step": 3, "eval_loss": 2.0 + rate})
    path = written.run.path / "config.json"
    dump = json.loads(path.read_text())
    dump["config"]["optim"]["learning_rate"] = rate
    dump["config"].update(more)
    path.write_text(json.dumps(dump))
    written.run.event("finished", code=0)
    return written


@pytest.fixture
def runs(tmp_path: Path) -> list[Written]:
    other = run(tmp_path, "b", 0.2, only_here=EVIL)
    return [run(tmp_path, "a", 0.1), other, run(tmp_path, "c", 0.1)]


def test_settings_that_differ_and_no_others(runs: list[Written]) -> None:
    found = differing_settings([read_facts(written.run) for written in runs])
    assert found == [
        ("optim.learning_rate", ["0.1", "0.2", "0.1"]),
        ("only_here", ["not set", EVIL, "not set"]),
    ]
    same = [read_facts(runs[0].run), read_facts(runs[2].run)]
    assert differing_settings(same) == []
    assert "all runs have the same settings" in compare.settings(same)


def test_what_explains_no_difference_is_left_out(runs: list[Written]) -> None:
    for at, written in enumerate(runs[:2]):
        path = written.run.path / "manifest.json"
        dump = json.loads(path.read_text())
        dump |= {"host": f"h{at}", "data": {"rows": at}, "memory": {"moments": [at], "seen": at}}
        path.write_text(json.dumps(dump))
    found = dict(differing_environment([read_facts(written.run) for written in runs[:2]]))
    assert found["host"] == ["h0", "h1"] and found["memory.seen"] == ["0", "1"]
    assert not {name for name in found if name.startswith(("data", "memory.moments", "created"))}


@pytest.mark.runs("tatara report RUN RUN '…'")
def test_a_report_of_several_runs_is_one_page(
    runs: list[Written],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path))
    assert cli.main(["report", "a", "b", "a"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "comparison.html"
    text = path.read_text()
    tags = Tags(text)
    assert tags.open == [] and tags.wrong == [] and list(tags.dangers()) == []
    assert "script" not in tags.names
    for part in ("2 runs", "demo/a", "demo/b", "Settings that differ", "optim.learning_rate"):
        assert part in text
    assert EVIL not in text and "&lt;script&gt;alert(1)" in text
    assert text.count('<g class="c0">') >= 2 and text.count('<g class="c1">') >= 2


def test_a_run_of_several_that_is_not_there(
    runs: list[Written],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path))
    assert cli.main(["report", "a", "nothing"]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
    assert not (tmp_path / "comparison.html").exists()


def test_more_runs_than_colours_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path))
    names = [f"run-{at}" for at in range(compare.MOST + 1)]
    for name in names:
        Written(tmp_path, name)
    assert cli.main(["report", *names]) == 2
    assert f"at most {compare.MOST} runs, found {compare.MOST + 1}" in capsys.readouterr().err


def test_results_stand_side_by_side(runs: list[Written]) -> None:
    text = compare.results([read_facts(written.run) for written in runs[:2]])
    rows = [row.split("<td")[1:] for row in text.split("<tr>")[2:]]
    loss = next(row for row in rows if ">loss<" in row[0])
    assert ">2.1<" in loss[1] and ">2.2<" in loss[2]


def test_a_run_without_curves_is_no_hindrance(tmp_path: Path) -> None:
    facts = [read_facts(run(tmp_path, "a", 0.1).run), read_facts(Written(tmp_path, ID).run)]
    assert "<svg" in compare.charts([fact.snapshot for fact in facts])
    assert Tags("".join(compare.parts(facts).values())).wrong == []
