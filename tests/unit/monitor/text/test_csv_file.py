"""Numbers of a run as a table that a spreadsheet opens."""

import csv
from pathlib import Path

import pytest

from tests.support.run_files import Written
from workloads.cli import main

pytestmark = pytest.mark.unit


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_every_logged_step_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training and held-out numbers of a step in one line; steps done again after a restart once,
    and what was logged behind the place that a restart went back to is left out."""
    written = Written(tmp_path).begun()
    for step in (1, 2, 3, 4):
        written.step(step, 9.0, loss_arm=0.5)
    written.run.eval_metric({"step": 2, "eval_loss": 0.7})
    for step in (2, 3):
        written.step(step, 4.0 + step, loss_arm=float("nan"))
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path))
    assert main(["report", "latest", "--csv"]) == 0
    file = Path(capsys.readouterr().out.strip())
    assert file == written.run.path / "metrics.csv"
    rows = table(file)
    assert list(rows[0])[:4] == ["step", "epoch", "time", "loss"]
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [row["loss"] for row in rows] == ["9.0", "6.0", "7.0"]
    assert [row["eval_loss"] for row in rows] == ["", "0.7", ""]
    assert rows[2]["loss_arm"] == "nan" and rows[0]["learning_rate"] == "0.001"
    assert rows[0]["time"].count(":") == 2


def test_several_runs_have_a_column_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        Written(tmp_path, f"20260101-12000{number}-abcd").begun().step(1, float(number))
    Written(tmp_path, "20260101-120003-abcd").begun()
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path))
    ids = [f"20260101-12000{number}-abcd" for number in (1, 2)]
    assert main(["report", *ids, "--csv"]) == 0
    rows = table(tmp_path / "comparison.csv")
    assert [(row["run"], row["loss"]) for row in rows] == list(
        zip(ids, ["1.0", "2.0"], strict=True)
    )
    assert main(["report", "20260101-120003-abcd", "--csv"]) == 2
