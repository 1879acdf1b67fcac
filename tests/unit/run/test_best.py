"""E-4: the best checkpoint, by loss or by what was earned; what is no number is never the best."""

import json
from pathlib import Path
from typing import Any

import pytest

from workloads.run import Run
from workloads.run.best import best_step

pytestmark = pytest.mark.unit
NAN = float("nan")


def evaluated(tmp_path: Path, *rows: dict[str, Any]) -> Run:
    run = Run(tmp_path)
    for row in rows:
        run.eval_metric(row)
    return run


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({3: NAN, 6: 1.0, 9: 0.5}, 9),
        ({3: 0.5, 6: NAN, 9: 1.0}, 3),
        ({3: float("-inf"), 6: 1.0}, 6),
        ({3: 0.5, 6: 0.5}, 3),
        ({3: NAN}, None),
        ({12: 0.1, 6: 1.0}, 6),  # no checkpoint is of step 12
        ({}, None),
    ],
)
def test_the_lowest_loss(tmp_path: Path, losses: dict[int, float], best: int | None) -> None:
    run = evaluated(tmp_path, *({"step": step, "eval_loss": it} for step, it in losses.items()))
    assert best_step(run, {3, 6, 9}) == best


def test_the_weighted_sum_of_rewards(tmp_path: Path) -> None:
    rewards = [{"name": "accuracy", "weight": 3.0}, {"name": "format", "weight": 0.5}]
    (tmp_path / "config.json").write_text(json.dumps({"rewards": {"functions": rewards}}))
    rows = [(3, 0.5, 0.0), (6, 0.4, 0.5), (9, 0.1, 1.0), (12, 0.9, 0.9)]
    run = evaluated(
        tmp_path,
        *({"step": at, "held_out/accuracy": a, "held_out/format": f} for at, a, f in rows),
        {"step": 9, "held_out/accuracy": NAN},
    )
    assert best_step(run, {3, 6, 9}) == 3
    (tmp_path / "config.json").unlink()
    assert best_step(run, {3, 6, 9}) == 9, "each counts alike where no weight is known"
