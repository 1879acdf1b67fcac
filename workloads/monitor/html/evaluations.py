"""Scores and answers of a run's evaluations, before and after training, as HTML."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.monitor.html.page import esc, table
from workloads.monitor.numbers import number_text
from workloads.monitor.reading.follow import Follower, number, read_object, whole
from workloads.monitor.reading.samples import Sample, samples
from workloads.run import Run

_ORDER = ("before", "after")
_EXAMPLES = 12
_MOST_ANSWERS = 100_000
_LONGEST = 1500  # characters of a text that are shown
_NO_SCORES = ("settings", "answers", "fingerprint", "task")
Answers = dict[int, dict[str, Any]]


@dataclass
class EvaluatedTask:
    """One task: summary and answers of each evaluation."""

    name: str
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)

    @property
    def times(self) -> list[str]:
        """`before` and `after` first, then any other."""
        known = [name for name in _ORDER if name in self.scores]
        return [*known, *sorted(set(self.scores) - set(known))]


def tasks(run: Run) -> list[EvaluatedTask]:
    """The evaluations in `<run>/evaluation/<when>/<task>.json`."""
    found: dict[str, EvaluatedTask] = {}
    for path in sorted(run.evaluation.glob("*/*.json")):
        scores = read_object(path)
        if not any(number(value) is not None for value in scores.values()):
            continue
        task = found.setdefault(path.stem, EvaluatedTask(path.stem))
        task.scores[path.parent.name] = scores
        task.answers[path.parent.name] = _answers(path, scores)
    return list(found.values())


def _answers(path: Path, scores: Mapping[str, Any]) -> Answers:
    """The answers by their index, from the file that the summary names beside itself."""
    name = scores.get("answers")
    if not isinstance(name, str) or Path(name).name != name:
        return {}
    found: Answers = {}
    for row in Follower(path.with_name(name), forget=found.clear).rows(limit=64 << 20):
        index = whole(row.get("index"))
        if index is not None and len(found) < _MOST_ANSWERS:
            found[index] = row
    return found


def scores_of(run: Run) -> dict[str, str]:
    """The scores of the last evaluation of each task: `gsm8k strict` → `43.1%`."""
    found = {}
    for task in tasks(run):
        for name, value in task.scores[task.times[-1]].items():
            known = number(value)
            if known is not None and name not in (*_NO_SCORES, "seconds"):
                found[f"{task.name} {name}"] = _score(name, known)
    return found


def scores_table(task: EvaluatedTask) -> str:
    """One row a number, one column an evaluation, and the change from first to last."""
    times = task.times
    names = dict.fromkeys(
        name
        for when in times
        for name, value in task.scores[when].items()
        if number(value) is not None and name not in _NO_SCORES
    )
    change = len(times) > 1
    head = ["", *times, *(["change"] if change else [])]
    rows = [_scores_row(name, task, times, change) for name in names]
    return table(head, rows, right=range(1, len(head)))


def _scores_row(name: str, task: EvaluatedTask, times: Sequence[str], change: bool) -> list[str]:
    values = [number(task.scores[when].get(name)) for when in times]
    cells = [esc(_score(name, value)) for value in values]
    first, last = values[0], values[-1]
    if change and first is not None and last is not None:
        cells.append(esc(_signed(name, last - first)))
    return [esc(name), *cells]


def _is_share(name: str, value: float) -> bool:
    return 0 <= abs(value) <= 1 and name not in ("rows", "seconds", "loss", "perplexity")


def _score(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if _is_share(name, value) else number_text(value)


def _signed(name: str, value: float) -> str:
    if not value:
        return "0"
    sign = "+" if value > 0 else "-"
    text = f"{abs(value) * 100:.1f} points" if _is_share(name, value) else number_text(abs(value))
    return f"{sign}{text}"


def examples(task: EvaluatedTask) -> str:
    """Some questions with the answers of each evaluation; changed verdicts come first."""
    times = [when for when in task.times if task.answers.get(when)]
    if not times:
        return ""
    last = task.answers[times[-1]]
    changed = sorted(last, key=lambda index: (not _changed(task, times, index), index))
    shown = "".join(_example(task, times, index) for index in changed[:_EXAMPLES])
    count = min(_EXAMPLES, len(last))
    return f"<details><summary>{count} of {len(last):,} answers</summary>{shown}</details>"


def _changed(task: EvaluatedTask, times: Sequence[str], index: int) -> bool:
    verdicts = [_verdict(task.answers[when].get(index, {})) for when in times]
    return any(verdict != verdicts[0] for verdict in verdicts)


def _verdict(row: Mapping[str, Any]) -> str:
    """Verdict on an answer: `strict no, marked yes`."""
    facts = [(name, value) for name, value in row.items() if isinstance(value, bool)]
    return ", ".join(f"{name} {'yes' if value else 'no'}" for name, value in facts)


def _example(task: EvaluatedTask, times: Sequence[str], index: int) -> str:
    last = task.answers[times[-1]][index]
    question = next((last[name] for name in ("question", "prompt", "input") if name in last), "")
    lines = [("question", _text(question))]
    for when in times:
        row = task.answers[when].get(index, {})
        verdict = f'<div class="soft">{esc(_verdict(row))}</div>'
        lines.append((esc(when), verdict + _text(row.get("output", "no answer"))))
    if "answer" in last:
        lines.append(("expected", _text(last["answer"])))
    body = "".join(f"<tr><th>{label}</th><td>{text}</td></tr>" for label, text in lines)
    return f"<h3>question {index}</h3><table>{body}</table>"


def _text(value: object) -> str:
    text = str(value)
    cut = f"{text[:_LONGEST]} …" if len(text) > _LONGEST else text
    return f"<pre>{esc(cut)}</pre>"


def sampled(run: Run, most: int) -> str:
    """Held-out questions with their answers during training, at most so many steps each."""
    return "".join(_sampled(sample, most) for sample in samples(run))


def _sampled(sample: Sample, most: int) -> str:
    lines = [("question", sample.asked), ("expected", sample.answer)]
    lines += [(f"step {step:,}", output) for step, output in sample.some(most)]
    body = "".join(f"<tr><th>{esc(label)}</th><td>{_text(text)}</td></tr>" for label, text in lines)
    return f"<details><summary>{esc(sample.place)}</summary><table>{body}</table></details>"


def section(run: Run) -> Iterator[str]:
    """All tasks, one after the other."""
    for task in tasks(run):
        yield f"<h3>{esc(task.name)}</h3>{scores_table(task)}{examples(task)}"
