"""Question files of R1-V's form, drawn."""

import json
from pathlib import Path

import pytest

from workloads.cli import main
from workloads.grpo.data import scenes
from workloads.grpo.evaluate.tasks import TASKS, read_questions

pytestmark = pytest.mark.unit


def test_drawn_questions_are_read_as_r1v_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """G-F13: so that `tatara eval superclevr` can be tried at once."""
    monkeypatch.setattr(scenes, "_SUPERSAMPLING", 1)  # a coarse drawing will do
    folder = tmp_path / "questions"
    words = ["data", "generate", "questions", str(folder), "--count", "4"]
    assert main(words) == 0
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert lines[0]["image_path"] == "./images/superCLEVR_new_000000.png"
    assert len({line["ground_truth"] for line in lines}) > 3
    asked = read_questions(TASKS["superclevr"], folder / "prompts.jsonl", folder)
    assert [question.row["ground_truth"] for question in asked] == [
        line["ground_truth"] for line in lines
    ]
    assert main(words) == 0 and "4 questions, there already" in capsys.readouterr().out
    assert main([*words, "--seed", "1"]) == 2
    assert "to be empty or not there, found files" in capsys.readouterr().err
