"""Own tasks from files of rows: both kinds, and what is wrong with a row."""

import json
from pathlib import Path
from typing import Any

import pytest

from workloads.cli import main
from workloads.errors import UserError
from workloads.llm.evaluate import tasks_command
from workloads.llm.evaluate.task_files import read_task

pytestmark = pytest.mark.unit
CHOICES = {"question": "空の色は?", "choices": ["青", "赤", "緑"]}


def written(folder: Path, *rows: Any, name: str = "colours.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_choices_by_index_and_by_text(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, CHOICES | {"answer": 2}, CHOICES | {"answer": "青"}))
    assert (task.name, task.answers) == ("colours", (2, 0))
    assert task.choices == (("青", "赤", "緑"),) * 2
    config = task.config(lambda question: f"<{question}>", 8)
    assert config["output_type"] == "multiple_choice"
    rows = config["custom_dataset"]()["test"]
    assert rows[0] == {"question": "<空の色は?>", "answer": 2, "choices": ["青", "赤", "緑"]}


def test_free_answers_of_other_names(tmp_path: Path) -> None:
    rows = ({"prompt": "1 + 1", "answer": 2}, {"instruction": "2 + 2", "output": " 4 "})
    task = read_task(written(tmp_path, *rows))
    assert (task.questions, task.answers, task.choices) == (("1 + 1", "2 + 2"), ("2", "4"), ())
    config = task.config(str, 8)
    assert config["generation_kwargs"]["max_gen_toks"] == 8
    assert read_task(written(tmp_path, *rows), 1).questions == ("1 + 1",)


def test_a_spreadsheet_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_text("question,answer\n1 + 1,2\n")
    assert read_task(path).answers == ("2",)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "青"}, "row 2: expected a text as question or prompt or instruction"),
        ({"question": " ", "answer": "青"}, "row 2: expected a text as question"),
        (CHOICES | {"answer": 3}, "row 2: expected answer as one of the choices, or its index"),
        (CHOICES | {"answer": True}, "row 2: expected answer as one of the choices"),
        (CHOICES | {"answer": "黒"}, "row 2: expected answer as one of the choices"),
        (CHOICES | {"choices": ["青"], "answer": 0}, "row 2: expected choices as a list of two"),
        (CHOICES | {"choices": "青赤", "answer": 0}, "row 2: expected choices as a list of two"),
        (CHOICES | {"choices": ["青", "青"], "answer": 0}, "row 2: expected choices as a list"),
        (CHOICES | {"answer": 0, "input": "夜"}, "row 2: expected question, choices and answer"),
        ({"question": "色は?", "answer": "青"}, "expected choices in all rows or in none"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(
    row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        read_task(written(tmp_path, CHOICES | {"answer": 0}, row))


def test_a_free_row_without_an_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 1: expected answer as a text, found None"):
        read_task(written(tmp_path, {"question": "色は?"}))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "nothing.jsonl"], "expected a file at nothing.jsonl, found none"),
        (["--tasks", "nothing.yaml"], "expected a file at nothing.yaml, found none"),
        (["--tasks", ","], "expected names of tasks or files, found none"),
        (["--tasks", "mmlu", "--limit", "0"], "--limit: expected a number over 0, found 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "tasks", "some/model", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks_command, "find_spec", lambda name: None)
    assert main(["eval", "tasks", "some/model", "--tasks", "mmlu"]) == 2
    assert "pip install 'tatara[eval]'" in capsys.readouterr().err
