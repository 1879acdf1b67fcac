"""SuperCLEVR counting and GEOQA: questions, scores and results as R1-V publishes them.

    questions = read_questions(TASKS["superclevr"], Path("prompts.jsonl"), Path("images"))
    result = evaluate(TASKS["superclevr"], questions, generate, Path("out.json"), model="...")
    print(table(TASKS["superclevr"], result, "my model"))

The caller generates: `generate` takes a batch of prompts and returns as many texts, greedily
decoded. Prompts, extraction and scoring follow R1-V's two scripts to the letter (commit
bbbbe3d), so that figures compare; results are JSON in the same layout.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from workloads.data.build_once import taken
from workloads.data.rows import by_reason, indented, read_rows
from workloads.engine.summary import interval
from workloads.errors import TataraError, UserError
from workloads.grpo import prompts
from workloads.grpo.data.images import StoredImage, find_image
from workloads.grpo.rewards.answers import extract_answer
from workloads.grpo.rewards.math_checker import shared_checker
from workloads.json_files import read_json

_COUNT = re.compile(r"<answer>\s*(\d+)\s*</answer>")
_MOST_DIGITS = 4000  # Python refuses to read longer numbers


def score_superclevr(output: str, truth: int) -> bool:
    """Whether the first `<answer>` with only digits in it holds `truth`; none is wrong."""
    extracted = extract_superclevr(output)
    return extracted is not None and extracted == truth


def extract_superclevr(output: str) -> int | None:
    """The count in the first `<answer>` with only digits and white space in it."""
    found = _COUNT.search(output)
    return int(found[1]) if found and len(found[1]) <= _MOST_DIGITS else None


def score_geoqa(output: str, truth: str) -> bool:
    """Whether math-verify, reading the whole output, finds `truth` in it."""
    return shared_checker().compare(output, truth).match


def extract_geoqa(output: str) -> str | None:
    """The first value that math-verify reads in the whole output, as text."""
    return shared_checker().compare(output, "").first


@dataclass(frozen=True)
class Task:
    """An evaluation: its wording, longest answer, and scoring.

    `references`: published accuracies in percent, as (model, accuracy).
    """

    name: str
    wording: str
    max_new_tokens: int
    truth: type
    references: tuple[tuple[str, float], ...]
    judge: Callable[[str, Any], dict[str, Any]]
    ascii_only: bool


def _judge_superclevr(output: str, truth: int) -> dict[str, Any]:
    return {"extracted_answer": extract_superclevr(output)}


def _judge_geoqa(output: str, truth: str) -> dict[str, Any]:
    verdict = shared_checker().compare(output, truth)
    return {"extracted_answer": verdict.first, "is_correct": verdict.match}


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "superclevr": Task(
            name="superclevr",
            wording=prompts.SUPERCLEVR,
            max_new_tokens=256,
            truth=int,
            references=(
                ("Qwen2-VL-2B-Instruct", 48.0),
                ("Qwen2-VL-2B-Instruct, GRPO 100 steps", 82.5),
                ("Qwen2.5-VL-3B-Instruct", 55.0),
                ("Qwen2.5-VL-3B-Instruct, GRPO 100 steps", 89.5),
            ),
            judge=_judge_superclevr,
            ascii_only=True,
        ),
        "geoqa": Task(
            name="geoqa",
            wording=prompts.GEOQA,
            max_new_tokens=1024,
            truth=str,
            references=(
                ("Qwen2-VL-7B-Instruct", 30.63),
                ("Qwen2-VL-7B-Instruct, GRPO 2 epochs", 38.72),
                ("Qwen2.5-VL-3B-Instruct", 35.41),
                ("Qwen2.5-VL-3B-Instruct, GRPO 1 epoch", 47.48),
            ),
            judge=_judge_geoqa,
            ascii_only=False,
        ),
    }
)


@dataclass(frozen=True)
class Question:
    """A row as it stands in the file (`image_path`, `question`, `ground_truth`), and its image."""

    row: Mapping[str, Any]
    image: StoredImage


@dataclass(frozen=True)
class Prompt:
    """Input of `generate`: turns for the chat template, the image, the longest answer."""

    turns: prompts.Turns
    image: Image.Image
    max_new_tokens: int


Generate = Callable[[Sequence[Prompt]], Sequence[str]]


@dataclass(frozen=True)
class Result:
    """`accuracy` in percent, and one entry a question in the published layout."""

    accuracy: float
    results: list[dict[str, Any]]


def read_questions(task: Task, file: Path, image_root: Path) -> list[Question]:
    """The questions of a prompt file (JSONL), each with its image found below `image_root`.

    Files of training rows are taken too (image, problem, solution), and a truth in tags or of the
    other type (`"4"` for a count, `7` for a text).

    A path counts from `image_root`, with or without its leading folders. Raises UserError that
    names rows that are bad or whose images are missing: an evaluation needs all questions.
    """
    columns = {"image_path": str, "question": str, "ground_truth": task.truth}
    rows = read_rows(file, {}, budget=0)
    questions, bad = [], []
    for index, given in enumerate(rows.rows):
        row = _as_published(given, task.truth)
        try:
            _check_row(row, columns)
            questions.append(Question(row, find_image(row["image_path"], image_root)))
        except ValueError as error:
            bad.append(f"{rows.place(index)}: {error}")
    if bad:
        raise UserError(
            f"expected {len(rows.rows)} questions with images for {task.name}, found {len(bad)} "
            f"bad; fix the rows, or unpack the images into {image_root}:"
            f"{indented(by_reason(bad))}"
        )
    return questions


def _as_published(row: Mapping[str, Any], truth: type) -> dict[str, Any]:
    """The row with the published names for its columns, and its truth of the published type."""
    known = {"image_path": "image", "question": "problem", "ground_truth": "solution"}
    named = dict(row)
    for published, ours in known.items():
        if published not in named and ours in named:
            named[published] = named.pop(ours)
    value = named.get("ground_truth")
    if isinstance(value, str):
        value = extract_answer(value) or value
    if truth is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if truth is int and isinstance(value, str) and re.fullmatch(r"\s*\d{1,18}\s*", value):
        value = int(value)
    return named if value is None else {**named, "ground_truth": value}


def _check_row(row: Mapping[str, Any], columns: Mapping[str, type]) -> None:
    for name, kind in columns.items():
        value = row.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"column {name!r}: expected {kind.__name__}, found {value!r:.80}")


def evaluate(
    task: Task,
    questions: Sequence[Question],
    generate: Generate,
    output: Path,
    model: str,
    batch_size: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Answer `questions` in batches, score the answers and write the result to `output`.

    Answers are kept in a file beside `output` after every batch; started again with the same
    `model` and questions, an evaluation goes on behind the last whole batch. Raises UserError where
    there are no questions.
    """
    if not questions:
        raise UserError(f"expected questions for {task.name}, found none; name a prompt file")
    kept = _Answers(output, _identity(task, questions, model))
    with kept.alone():
        answers = _answered(task, questions, generate, kept, batch_size, progress)
        result = score(task, questions, answers)
        _write(output, task, result)
        kept.remove()
    return result


def _answered(
    task: Task,
    questions: Sequence[Question],
    generate: Generate,
    kept: "_Answers",
    batch_size: int,
    progress: Callable[[int, int], None],
) -> list[str]:
    """Answers to all questions: stored ones, and the rest as they come."""
    answers = kept.read()
    if len(answers) > len(questions):
        raise UserError(
            f"expected at most {len(questions)} answers in {kept.path}, found {len(answers)}; "
            "remove the file, and all questions are asked again"
        )
    progress(len(answers), len(questions))
    for start in range(len(answers), len(questions), batch_size):
        batch = [_prompt(task, question) for question in questions[start : start + batch_size]]
        texts = list(generate(batch))
        if len(texts) != len(batch):
            raise TataraError(f"expected {len(batch)} answers of a batch, found {len(texts)}")
        kept.append(texts)
        answers += texts
        progress(len(answers), len(questions))
    return answers


def score(task: Task, questions: Sequence[Question], answers: Sequence[str]) -> Result:
    """The accuracy of `answers` to `questions` in percent, and the entries that show why."""
    pairs = zip(questions, answers, strict=True)
    return _scored(
        task, [(dict(question.row), question.row["ground_truth"], said) for question, said in pairs]
    )


def _scored(task: Task, rows: Sequence[tuple[dict[str, Any], Any, str]]) -> Result:
    """The result of rows of (question, truth, answer)."""
    results, right = [], 0
    for question, truth, answer in rows:
        judged = task.judge(answer, truth)
        right += judged.get("is_correct", judged["extracted_answer"] == truth)
        entry = {"question": question, "ground_truth": truth, "model_output": answer}
        results.append({**entry, **judged})
    return Result(right / len(rows) * 100, results)


def rescore(task: Task, file: Path, output: Path | None) -> tuple[Result, float]:
    """The answers of a finished result scored again, and the accuracy that the file had.

    No answer is generated. The new result is written to `output` if one is named. Raises UserError.
    """
    found = read_json(file)
    try:
        rows = [
            (dict(entry["question"]), entry["ground_truth"], str(entry["model_output"]))
            for entry in found["results"]
        ]
        before = float(found["accuracy"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: expected a result of tatara eval {task.name}, with accuracy and results, "
            f"found {type(error).__name__}: {error}; name another file"
        ) from error
    if not rows or not all(isinstance(truth, task.truth) for _, truth, _ in rows):
        raise UserError(f"{file}: expected answers to questions of {task.name}, found others")
    result = _scored(task, rows)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        _write(output, task, result)
    return result, before


def table(task: Task, result: Result, model: str) -> str:
    """The accuracy beside the published ones, with Wilson's 95 % interval."""
    count = len(result.results)
    low, high = (100 * edge for edge in interval(result.accuracy / 100, count))
    own = f"{result.accuracy:6.2f} %  ({low:.1f} to {high:.1f}, {count} questions)"
    lines = [(model, own), *((name, f"{value:6.2f} %") for name, value in task.references)]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _prompt(task: Task, question: Question) -> Prompt:
    text = str(question.row["question"])
    try:
        image = question.image.load()
    except ValueError as error:
        name = question.row["image_path"]
        raise UserError(f"{name}: {error}; unpack the images again") from error
    return Prompt(prompts.image_turns(text, task.wording), image, task.max_new_tokens)


def _identity(task: Task, questions: Sequence[Question], model: str) -> str:
    """Digest of everything that the answers depend on; `model` names the settings, too."""
    rows = [dict(question.row) for question in questions]
    facts = json.dumps([task.name, task.wording, task.max_new_tokens, model, rows], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _write(output: Path, task: Task, result: Result) -> None:
    """Write the published layout, whole or not at all."""
    text = json.dumps(
        {"accuracy": result.accuracy, "results": result.results},
        indent=2,
        ensure_ascii=task.ascii_only,
    )
    partial = output.with_name(f".{output.name}.new")
    # A model may write half a character; it is kept as "?" rather than losing the evaluation.
    partial.write_bytes(text.encode("utf-8", errors="replace"))
    os.replace(partial, output)


class _Answers:
    """File of the answers so far, one line of JSON each, after a line with their identity."""

    def __init__(self, output: Path, identity: str) -> None:
        self.path = output.with_name(f"{output.name}.answers.jsonl")
        self._identity = identity

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the file against another evaluation. Raises UserError where one holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            if not taken(file.fileno()):
                raise UserError(
                    f"expected to write {self.path} alone, found another evaluation at it; wait "
                    "for its end or choose another output"
                )
            yield

    def read(self) -> list[str]:
        """The stored answers; raises UserError if they are of another model or other questions."""
        whole = [self._text(line) for line in self._whole_lines()]
        if not whole:
            self.append([self._identity])
        elif whole[0] != self._identity:
            raise UserError(
                f"expected answers of this model to these questions in {self.path}, found others; "
                "remove the file or choose another output"
            )
        return whole[1:]

    def _text(self, line: bytes) -> str:
        try:
            text = json.loads(line)
        except ValueError:
            text = None
        if not isinstance(text, str):
            raise UserError(
                f"expected an answer in every line of {self.path}, found {line[:40]!r}; "
                "remove the file, and all questions are asked again"
            )
        return text

    def _whole_lines(self) -> list[bytes]:
        """The complete lines; a broken last one is removed."""
        with self.path.open("rb+") as file:
            whole = file.read()
            whole = whole[: whole.rfind(b"\n") + 1]
            file.truncate(len(whole))
        return whole.splitlines()

    def append(self, texts: Sequence[str]) -> None:
        """Write one batch so that it survives a crash of the machine."""
        with self.path.open("a", encoding="ascii") as file:
            file.writelines(json.dumps(text) + "\n" for text in texts)
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the file: the result holds the answers."""
        self.path.unlink()
