"""The figures of an evaluation, beside published figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workloads.engine.summary import interval
from workloads.vla.calvin.evaluate import SequenceResult
from workloads.vla.calvin.scoring import success_rates
from workloads.vla.calvin.sequences import COUNT

FILE = "calvin.json"
# Published shares of the 1000 sequences with at least 1 to 5 tasks in a row, and the
# mean length. The data was drawn with EGL.
PUBLISHED: Sequence[tuple[str, str, tuple[float, ...], float]] = (
    ("RoboVLMs (Kosmos-2)", "ABCD → D", (0.967, 0.930, 0.899, 0.865, 0.826), 4.49),
    ("GR-1", "ABCD → D", (), 4.21),
    ("HULC", "ABCD → D", (), 3.06),
    ("RT-1", "ABCD → D", (), 2.45),
    ("RoboVLMs (Kosmos-2)", "ABC → D", (0.980, 0.936, 0.854, 0.778, 0.704), 4.25),
    ("FLOWER", "ABC → D", (), 4.53),
    ("X-VLA", "ABC → D", (), 4.32),
    ("Seer", "ABC → D", (), 4.28),
    ("OpenVLA", "ABC → D", (), 3.27),
    ("GR-1", "ABC → D", (), 3.06),
    ("RoboFlamingo", "ABC → D", (), 2.47),
    ("RT-1", "ABC → D", (), 0.90),
    ("HULC", "ABC → D", (), 0.67),
)


def summary(results: Sequence[SequenceResult], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The results as JSON: success rates and successes by task.

    Shares of sequences with at least 1 to 5 tasks in a row, their mean number, and for each task
    its successes and how often it was begun.
    """
    shares, length = success_rates([result.solved for result in results])
    by_task: dict[str, list[int]] = {}
    for result in results:
        for place in range(len(result.steps)):
            by_task.setdefault(result.tasks[place], []).append(place < result.solved)
    return {
        "task": "calvin",
        "sequences": len(results),
        "success_in_a_row": shares,
        "average_length": length,
        "tasks": {
            name: {"solved": sum(found), "begun": len(found)}
            for name, found in sorted(by_task.items())
        },
        "steps": sum(sum(result.steps) for result in results),
        **facts,
    }


def write(found: Mapping[str, Any], folder: Path) -> Path:
    """Write a summary as JSON."""
    target = folder / FILE
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return target


def table(found: Mapping[str, Any], name: str) -> str:
    """Tasks, then the lengths beside the published ones."""
    count, renderer = found["sequences"], found["simulator"]["renderer"]
    wide = max(len(task) for task in found["tasks"])
    lines = [f"{'task':<{wide}}  solved of begun"]
    lines += [
        f"{task:<{wide}}  {each['solved']:>6} of {each['begun']}"
        for task, each in found["tasks"].items()
    ]
    rows = [(name, "", tuple(found["success_in_a_row"]), found["average_length"]), *PUBLISHED]
    wide = max(len(row[0]) for row in rows)
    lines += ["", f"{'':<{wide}}  trained on      1      2      3      4      5  Avg. Len."]
    for model, trained, shares, length in rows:
        cells = [f"{share:6.1%}" for share in shares] or [f"{'':6}"] * 5
        lines.append(f"{model:<{wide}}  {trained:<10} {' '.join(cells)}  {length:9.2f}")
    low, high = interval(found["success_in_a_row"][0], count)
    lines.append(
        f"{count} of {COUNT:,} sequences, drawn by {renderer}; 95 % range of the first task: "
        f"{low:.0%} to {high:.0%}. Published figures are of {COUNT:,} sequences."
    )
    return "\n".join(lines)
