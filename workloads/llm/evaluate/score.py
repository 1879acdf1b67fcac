"""GSM8K on a model: answers are written as they come, so that a stopped evaluation resumes.

In the folder given: `gsm8k-<fingerprint>.jsonl`, a row an answer (index, question, output, answer,
strict, flexible), and `gsm8k.json`, the summary. The fingerprint covers the weights, the questions
and the settings: anything different goes to a file of its own.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.errors import EXIT_STOPPED, Stopped, UserError
from workloads.llm.config import LlmData, LlmEvaluation
from workloads.llm.evaluate.gsm8k import (
    CHAT_SUFFIX,
    INVALID,
    STOP_STRINGS,
    extract_gsm8k,
    few_shot_examples,
    few_shot_prompt,
    score_gsm8k,
)
from workloads.run.integrity import write_atomically

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from workloads.engine.generate import Prompt

DEFAULT_DATA = LlmData(source="openai/gsm8k", prompt_suffix=f" {CHAT_SUFFIX}")
TASK = "gsm8k"
Row = Mapping[str, Any]
# Values of each weight in the fingerprint: training changes all of them.
_SAMPLED = 16


@dataclass(frozen=True)
class Score:
    """Shares of right answers, 0 to 1, and of outputs that have the form `#### N`."""

    task: str
    rows: int
    strict: float
    flexible: float
    marked: float
    fingerprint: str
    seconds: float = 0.0

    @property
    def error(self) -> float:
        """Standard error of `flexible`."""
        share = self.flexible
        return math.sqrt(share * (1 - share) / (self.rows - 1)) if self.rows > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "error": round(self.error, 6)}


def evaluate_gsm8k(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    settings: LlmEvaluation,
    out: Path,
    *,
    data: LlmData | None = None,
    examples: Sequence[Row] = (),
    shard: tuple[int, int] = (0, 1),
    should_stop: Callable[[], int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Score:
    """Generate and score answers to the rows' questions; earlier answers are kept.

    rows: `question` and `answer`, the dataset's full answer text. data: the form of prompts in
    training, for style chat; by default verl's. examples: solved rows that the few-shot
    examples are drawn from. shard: (rank, number of ranks); each rank answers its part with its own
    whole model, and when all are done one calls `merge_shards`; a single rank does so by itself.
    Returns this shard's score. Raises Stopped between two batches where `should_stop` gives a
    signal's number.
    """
    start = time.monotonic()
    rows = rows[: settings.rows]
    prompts = _prompts(tokenizer, rows, settings, data or DEFAULT_DATA, examples)
    fingerprint = _fingerprint(model, prompts, rows, settings)
    _report_new_file(out, fingerprint, report)
    done = read_answers(out, fingerprint)
    rank, world = shard
    mine = range(rank, len(rows), world)
    left = [index for index in mine if index not in done]
    finished = len(mine) - len(left)
    batches = _outputs(model, tokenizer, [prompts[index] for index in left], settings, report)
    with _Answers(out, fingerprint, shard) as answers:
        while finished < len(mine):
            if should_stop is not None and (number := should_stop()):
                raise Stopped(
                    f"evaluation stopped after {finished} of {len(mine)} answers; the same "
                    "command goes on from there",
                    EXIT_STOPPED if finished else 128 + number,
                )
            batch = next(batches)
            answers.add(_answer(left[place], rows, output) for place, output in batch)
            finished += len(batch)
            if progress is not None:
                progress(finished, len(mine))
    seconds = time.monotonic() - start
    if world == 1:
        return merge_shards(out, fingerprint, settings, seconds)
    found = read_answers(out, fingerprint)
    return _score([found[index] for index in mine], fingerprint, seconds)


def _outputs(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: "Sequence[Prompt]",
    settings: LlmEvaluation,
    report: Callable[[str], None] | None,
) -> Iterator[list[tuple[int, str]]]:
    from workloads.engine.generate import stream

    return stream(
        model,
        tokenizer,
        prompts,
        settings.max_new_tokens,
        settings.batch_size,
        stop=STOP_STRINGS if settings.style == "few_shot" else (),
        report=report,
    )


def _answer(index: int, rows: Sequence[Row], output: str) -> dict[str, Any]:
    row = rows[index]
    return {
        "index": index,
        "question": row["question"],
        "output": output,
        "answer": row["answer"],
        **score_gsm8k(output, row["answer"]),
        "marked": extract_gsm8k(output)["strict"] != INVALID,
    }


def _prompts(
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    settings: LlmEvaluation,
    data: LlmData,
    examples: Sequence[Row],
) -> "list[Prompt]":
    if settings.style == "chat":
        return _chat_prompts(tokenizer, rows, data)
    if settings.shots > len(examples):
        raise UserError(
            f"evaluation.shots: expected at most {len(examples)}, the number of solved examples, "
            f"found {settings.shots}; lower it, or set evaluation.style=chat"
        )
    drawn = few_shot_examples(len(examples), len(rows), settings.shots)
    return [
        few_shot_prompt([_texts(examples[place]) for place in places], row["question"])
        for row, places in zip(rows, drawn, strict=True)
    ]


def _chat_prompts(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], data: LlmData
) -> "list[Prompt]":
    """Prompts exactly as in training."""
    from workloads.llm.data.template import RowError, Template

    template = Template(data.model_copy(update={"format": "qa", "prompt": None}), tokenizer)
    prompts: list[Prompt] = []
    for number, row in enumerate(rows):
        try:
            text = template.prompt(_texts(row))
        except RowError as error:
            raise UserError(f"held-out row {number} cannot be asked: {error}") from None
        # The text from the template already has every special token.
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return prompts


def _texts(row: Row) -> dict[str, str]:
    absent = [name for name in ("question", "answer") if name not in row]
    if absent:
        raise UserError(
            f"task {TASK}: expected rows with question and answer, found one without {absent[0]}; "
            "use data.format=qa and map data.columns, or unset evaluation.task"
        )
    return {name: str(row[name]) for name in ("question", "answer")}


def _fingerprint(
    model: "nn.Module", prompts: "Sequence[Prompt]", rows: Sequence[Row], settings: LlmEvaluation
) -> str:
    """Digest of all that decides the answers; batch size and number of ranks do not."""
    digest = hashlib.blake2b(digest_size=4)
    answers = [row["answer"] for row in rows]
    decisive = [settings.style, settings.max_new_tokens, list(prompts), answers]
    digest.update(json.dumps(decisive).encode())
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        sampled = flat[:: max(1, flat.numel() // _SAMPLED)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()


def _report_new_file(out: Path, fingerprint: str, report: Callable[[str], None] | None) -> None:
    if report is None or any(out.glob(f"{TASK}-{fingerprint}.*")):
        return
    others = sorted(out.glob(f"{TASK}-*.jsonl"), key=lambda path: path.stat().st_mtime)
    if others:
        report(
            f"evaluation: model, questions or settings differ from those of {others[-1].name}; "
            f"starting {TASK}-{fingerprint}.jsonl"
        )


class _Answers:
    """One rank's answers, appended a batch at a time and synced to disk."""

    def __init__(self, out: Path, fingerprint: str, shard: tuple[int, int]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / f"{TASK}-{fingerprint}.part-{shard[0]}-of-{shard[1]}.jsonl"

    def __enter__(self) -> "_Answers":
        self._file = self._path.open("ab")
        # A line cut short by a kill must not merge with the next one.
        if self._file.tell():
            self._file.write(b"\n")
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()

    def add(self, answers: Iterable[dict[str, Any]]) -> None:
        lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def read_answers(out: Path, fingerprint: str) -> dict[int, dict[str, Any]]:
    """Row index → answer, from all ranks' files of a fingerprint; half-written lines left out."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(out.glob(f"{TASK}-{fingerprint}.*jsonl")):
        # Not splitlines: an answer may hold line separators of Unicode.
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                answer = json.loads(line)
                found[int(answer["index"])] = answer
            except (ValueError, KeyError, TypeError):
                continue
    return dict(sorted(found.items()))


def merge_shards(
    out: Path, fingerprint: str, settings: LlmEvaluation, seconds: float = 0.0
) -> Score:
    """Put all ranks' answers into one file in the rows' order and write the summary.

    Called once, when every rank is done; `fingerprint` is that of any rank's Score.
    """
    found = read_answers(out, fingerprint)
    lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in found.values()]
    whole = out / f"{TASK}-{fingerprint}.jsonl"
    write_atomically(whole, "".join(lines))
    for part in out.glob(f"{TASK}-{fingerprint}.part-*.jsonl"):
        part.unlink()
    score = _score(list(found.values()), fingerprint, seconds)
    summary = {**score.as_dict(), "settings": settings.model_dump(), "answers": whole.name}
    write_atomically(out / f"{TASK}.json", json.dumps(summary, indent=1, ensure_ascii=False))
    return score


def _score(answers: Sequence[dict[str, Any]], fingerprint: str, seconds: float) -> Score:
    def share(name: str) -> float:
        return sum(bool(answer[name]) for answer in answers) / max(1, len(answers))

    return Score(
        task=TASK,
        rows=len(answers),
        strict=share("strict"),
        flexible=share("flexible"),
        marked=share("marked"),
        fingerprint=fingerprint,
        seconds=round(seconds, 3),
    )


def table(scores: Mapping[str, Score]) -> "Table":
    """Scores side by side, a row for each name such as `before` and `after`."""
    from rich.table import Table

    made = Table(title=f"{TASK}: share of right answers")
    for name in ("", "questions", "strict", "flexible", "± (1 s.e.)", "form #### N"):
        made.add_column(name, justify="left" if not name else "right")
    for name, score in scores.items():
        made.add_row(
            name,
            str(score.rows),
            f"{score.strict:.1%}",
            f"{score.flexible:.1%}",
            f"{score.error:.1%}",
            f"{score.marked:.1%}",
        )
    return made


__all__ = [
    "Score",
    "evaluate_gsm8k",
    "merge_shards",
    "read_answers",
    "score_gsm8k",
    "table",
]
