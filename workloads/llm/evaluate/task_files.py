"""Tasks from a file of rows: multiple choice where rows have choices, else free answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.data.rows import read_rows
from workloads.errors import UserError

ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_QUESTIONS = ("question", "prompt", "instruction")
_KNOWN = ("choices", "answer", "output")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class OwnTask:
    """Questions with their answers; choices: those of each question, none where it is free-form.

    answers: the right choice by its index from 0, or the text that is expected.
    """

    name: str
    questions: tuple[str, ...]
    answers: tuple[int | str, ...]
    choices: tuple[tuple[str, ...], ...] = ()

    def config(self, prompt: Callable[[str], str], most: int) -> dict[str, Any]:
        """The task as a config of lm-evaluation-harness.

        prompt: turns a question into the model's prompt; most: the longest free-form answer in
        tokens.
        """
        rows: list[dict[str, Any]] = [
            {"question": prompt(question), "answer": answer}
            for question, answer in zip(self.questions, self.answers, strict=True)
        ]
        shared = {
            "task": self.name,
            "custom_dataset": lambda **_: _splits(rows),
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "target_delimiter": "",
            "metadata": {"version": 1.0},
        }
        if not self.choices:
            return shared | {
                "output_type": "generate_until",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": most},
                "filter_list": [_stripped()],
                "metric_list": [_mean("exact_match")],
            }
        for row, choices in zip(rows, self.choices, strict=True):
            row["choices"] = list(choices)
        return shared | {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [_mean("acc"), _mean("acc_norm")],
        }


def _mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _stripped() -> dict[str, Any]:
    """Answers without blanks and line breaks around them, as expected texts are read."""
    edges = {"function": "regex", "regex_pattern": r"^\s*([\s\S]*?)\s*$", "fallback": ""}
    return {"name": "stripped", "filter": [edges, {"function": "take_first"}]}


def _splits(rows: Sequence[dict[str, Any]]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(list(rows))})


def read_task(path: Path, most_rows: int | None = None) -> OwnTask:
    """Read a task from a file of rows. Raises UserError that names an unusable row."""
    rows = read_rows(path, {}, budget=0).rows[:most_rows]
    if not rows:
        raise UserError(f"{path}: expected rows with a question and an answer, found none")
    questions = tuple(_question(path, number, row) for number, row in enumerate(rows, start=1))
    has_choices = [row.get("choices") is not None for row in rows]
    if any(has_choices) and not all(has_choices):
        number = has_choices.index(not has_choices[0]) + 1
        raise UserError(
            f"{path}: row {number}: expected choices in all rows or in none, found a row of the "
            "other kind; put the two kinds into two files"
        )
    name = path.name.partition(".")[0]
    if not has_choices[0]:
        free = tuple(_text(path, number, row) for number, row in enumerate(rows, start=1))
        return OwnTask(name, questions, free)
    choices = tuple(_choices(path, number, row) for number, row in enumerate(rows, start=1))
    right = tuple(
        _right(path, number, row, among)
        for number, (row, among) in enumerate(zip(rows, choices, strict=True), start=1)
    )
    return OwnTask(name, questions, right, choices)


def _question(path: Path, number: int, row: Row) -> str:
    for column in _QUESTIONS:
        if isinstance(row.get(column), str) and row[column].strip():
            if unused := sorted(set(row) - {column, *_KNOWN}):
                raise UserError(
                    f"{path}: row {number}: expected {column}, choices and answer, found "
                    f"{', '.join(unused)} too; take what is needed into {column}"
                )
            return str(row[column])
    raise UserError(
        f"{path}: row {number}: expected a text as {' or '.join(_QUESTIONS)}, found "
        f"{', '.join(row) or 'nothing'}"
    )


def _answer(row: Row) -> Any:
    return row.get("answer", row.get("output"))


def _text(path: Path, number: int, row: Row) -> str:
    answer = _answer(row)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UserError(f"{path}: row {number}: expected answer as a text, found {answer!r}")
    return str(answer).strip()


def _choices(path: Path, number: int, row: Row) -> tuple[str, ...]:
    choices = row["choices"]
    is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
    if not is_list or len(choices) < 2 or len(set(map(str, choices))) < len(choices):
        raise UserError(
            f"{path}: row {number}: expected choices as a list of two different texts or more, "
            f"found {choices!r}"
        )
    return tuple(map(str, choices))


def _right(path: Path, number: int, row: Row, choices: tuple[str, ...]) -> int:
    answer = _answer(row)
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    is_index = isinstance(answer, int) and not isinstance(answer, bool)
    if is_index and 0 <= answer < len(choices):
        return int(answer)
    raise UserError(
        f"{path}: row {number}: expected answer as one of the choices, or its index from 0 to "
        f"{len(choices) - 1}, found {answer!r}"
    )
