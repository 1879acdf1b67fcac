"""Numbers of a finished run: its rows by step, a curve, and changes over the training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads.run import Run
from workloads.run.directory import rows_in


def rows_of(run: Run) -> list[dict[str, Any]]:
    """Metrics by step; where a restart repeated steps, the last row of each counts.

    A line that a full disk cut short is skipped.
    """
    training: dict[int, dict[str, Any]] = {}
    held_out: dict[int, dict[str, Any]] = {}
    for path, found in ((run.metrics, training), (run.evaluations, held_out)):
        for row in rows_in(path):
            found[row["step"]] = row
    every = [*training.values(), *held_out.values()]
    return sorted(every, key=lambda row: (row["step"], "loss" not in row))


def series(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and numbers of one metric."""
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return [step for step, _ in points], [float(value) for _, value in points]


def draw_curve(run: Run) -> Path | None:
    """Write `<run>/loss.png`; None where there is nothing to draw."""
    from matplotlib.figure import Figure

    rows = rows_of(run)
    steps, losses = series(rows, "loss")
    if not steps:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#9db4d3", linewidth=1, label="training loss")
    axes.plot(steps, smooth(losses), color="#1f4e8c", linewidth=2, label="smoothed")
    held_out = series(rows, "eval_loss")
    if held_out[0]:
        axes.plot(*held_out, color="#c8553d", marker="o", linewidth=1.5, label="held-out loss")
    axes.set(xlabel="step", ylabel="loss", title=f"{run.path.parent.name} · {run.id}")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path = run.path / "loss.png"
    figure.savefig(path, dpi=120)
    return path


def smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential mean with bias correction, as of Adam's moments."""
    mean, found = 0.0, []
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        found.append(mean / (1 - weight**count))
    return found


def change(before: float | None, after: float | None, form: str = "{:.3g}") -> str:
    """`5.41 → 1.02`, or the one value that is known."""
    known = [form.format(value) for value in (before, after) if value is not None]
    return " → ".join(known) if known else "not measured"


def course(values: Sequence[float], form: str = "{:.3g}") -> str:
    """Change from the first to the last measurement; a single one is no change."""
    return change(values[0] if len(values) > 1 else None, values[-1] if values else None, form)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval, 0..1, of a success rate over `count` trials."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
