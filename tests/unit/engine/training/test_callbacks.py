"""A resumed optimizer goes on at the rate that is set now."""

import copy

import pytest
import torch
from transformers import get_scheduler

from workloads.engine.training.callbacks import follow_schedule, take_rate
from workloads.engine.training.trainer import rate_by_epochs

pytestmark = pytest.mark.unit


class Training:
    """An optimizer with two groups and a schedule, a few steps in."""

    def __init__(self, rate: float, schedule: str) -> None:
        weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        groups = [
            {"params": [weight], "weight_decay": decay}
            for weight, decay in zip(weights, (0.1, 0), strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate)
        self.schedule = get_scheduler(schedule, self.optimizer, 2, 20)

    def step(self, count: int) -> list[float]:
        """The rate of each step."""
        rates = []
        for _ in range(count):
            rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.schedule.step()
        return rates

    def resume(self, other: "Training") -> None:
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))
        self.schedule.load_state_dict(copy.deepcopy(other.schedule.state_dict()))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_another_rate_is_taken_at_the_same_place_of_the_schedule(schedule: str) -> None:
    first, whole = Training(1e-3, schedule), Training(2e-5, schedule)
    first.step(7)
    whole.step(7)
    second = Training(2e-5, schedule)
    second.resume(first)
    assert take_rate(second.optimizer, second.schedule, 2e-5) == 1e-3
    assert second.step(10) == pytest.approx(whole.step(10))


def test_the_same_rate_touches_nothing() -> None:
    first, second = Training(1e-3, "cosine"), Training(1e-3, "cosine")
    first.step(7)
    second.resume(first)
    assert take_rate(second.optimizer, second.schedule, 1e-3) is None
    assert second.optimizer.state_dict() == first.optimizer.state_dict()
    assert second.step(5) == first.step(5)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_another_schedule_holds_from_the_first_step_on(schedule: str) -> None:
    """E-14: the first step after a resume is not one more of the old schedule."""
    first, whole = Training(1e-3, "linear"), Training(1e-3, schedule)
    first.step(7)
    whole.step(7)
    second = Training(1e-3, schedule)
    second.resume(first)
    told = follow_schedule(second.optimizer, second.schedule)
    assert told is not None
    assert told == pytest.approx((whole.optimizer.param_groups[0]["lr"], 0.00072), rel=0.01)
    assert second.step(5) == pytest.approx(whole.step(5))


def test_the_same_schedule_touches_nothing() -> None:
    first, second = Training(1e-3, "cosine"), Training(1e-3, "cosine")
    first.step(7)
    second.resume(first)
    assert follow_schedule(second.optimizer, second.schedule) is None
    assert second.optimizer.state_dict() == first.optimizer.state_dict()


def test_cosine_by_epochs_falls_in_stairs() -> None:
    """As CosineAnnealingLR(T_max=epochs), stepped once an epoch, has it."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 1.0)
    expected = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    for epoch in range(5):
        rate = expected.get_last_lr()[0]
        found = {rate_by_epochs(step, 50, 5, 0) for step in range(10 * epoch, 10 * epoch + 10)}
        assert len(found) == 1 and abs(found.pop() - rate) < 1e-12
        optimizer.step()
        expected.step()
    assert [rate_by_epochs(step, 50, 5, 4) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
