"""A run that goes on with other numbers of ranks sees the same samples in the same steps."""

from pathlib import Path

import pytest

from tests.support.processes import Training, rows

pytestmark = pytest.mark.smoke

# Eight rows a step, however they are split.
SAME = (
    "train.global_batch_size=8",
    "train.per_device_batch_size=4",
    "parallel.nodes=1",
    "parallel.strategy=ddp",
    "checkpoints.every_steps=2",
    "evaluation.every_steps=null",
    "train.log_every=1",
)


def train(outputs: Path, ranks: int, steps: int) -> Training:
    words = (*SAME, f"parallel.ranks_per_node={ranks}", f"train.max_steps={steps}")
    return Training(outputs, words, env={"RUN_ID": "20260101-000000-abcd"}).end()


def digests(training: Training) -> dict[int, int]:
    return {row["step"]: row["batches"] for row in rows(training.run.metrics) if "batches" in row}


def test_two_ranks_then_one_then_two_see_what_two_see(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 2, 6)
    for ranks, steps in ((2, 2), (1, 4), (2, 6)):
        parts = train(tmp_path / "parts", ranks, steps)
    assert len(digests(whole)) == 6 and len(set(digests(whole).values())) == 6
    assert digests(parts) == digests(whole)
    assert "going on with 1" in parts.log.read_text()
