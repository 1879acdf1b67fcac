"""The exit code of torchrun's process says how its ranks ended."""

import sys

import pytest

from workloads.launch import torchrun

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 75, 1: -9}, 137),  # seen at one look: the killed one is the cause
        ({0: -11, 1: 75}, 139),
        ({0: -6, 1: -9}, 137),  # NCCL aborts those that lost a peer
        ({0: 2}, 2),
        ({1: 75}, 75),
    ],
)
def test_a_rank_that_a_signal_ended_is_the_cause(
    monkeypatch: pytest.MonkeyPatch, codes: dict[int, int], expected: int
) -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failures = {rank: ProcessFailure(rank, 1, code, "") for rank, code in codes.items()}

    def fail(arguments: object) -> None:
        raise ChildFailedError("ranks", failures)

    monkeypatch.setattr(run, "run", fail)
    monkeypatch.setattr(torchrun, "die_with_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["torchrun", "-m", "workloads.launch.rank"])
    assert torchrun.main() == expected
