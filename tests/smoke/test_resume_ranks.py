"""A run that goes on with other numbers of ranks sees the same samples in the same steps."""

from pathlib import Path

import pytest

from tests.support.processes import Training, losses, rows

pytestmark = pytest.mark.smoke

# Twelve rows a step, however they are split.
SAME = (
    "train.global_batch_size=12",
    "parallel.nodes=1",
    "checkpoints.every_steps=2",
    "evaluation.every_steps=null",
    "train.log_every=1",
    "optim.schedule=constant",  # the same in parts that end at other steps
)


def train(outputs: Path, strategy: str, ranks: int, steps: int) -> Training:
    words = (
        *SAME,
        f"parallel.strategy={strategy}",
        f"train.per_device_batch_size={12 // ranks // 2}",
        f"parallel.ranks_per_node={ranks}",
        f"train.max_steps={steps}",
    )
    return Training(outputs, words, env={"RUN_ID": "20260101-000000-abcd"}).end()


def digests(training: Training) -> dict[int, int]:
    return {row["step"]: row["batches"] for row in rows(training.run.metrics) if "batches" in row}


@pytest.mark.parametrize(
    ("strategy", "between"),
    [("ddp", 1), pytest.param("fsdp2", 3, marks=pytest.mark.slow)],
    ids=["whole", "sharded"],
)
def test_two_ranks_then_others_then_two_see_what_two_see(
    tmp_path: Path, strategy: str, between: int
) -> None:
    """Weights and states of the optimizer that two ranks shard are sharded anew for three, and
    back: losses and gradients are those of two ranks but for the order of their sums."""
    whole = train(tmp_path / "whole", strategy, 2, 6)
    for ranks, steps in ((2, 2), (between, 4), (2, 6)):
        parts = train(tmp_path / "parts", strategy, ranks, steps)
    assert len(digests(whole)) == 6 and len(set(digests(whole).values())) == 6
    assert digests(parts) == digests(whole)
    assert f"going on with {between}" in parts.log.read_text()
    found, expected = losses(parts.run), losses(whole.run)
    for step, (loss, norm, *_) in expected.items():
        assert found[step][:2] == pytest.approx((loss, norm), rel=1e-3), step
