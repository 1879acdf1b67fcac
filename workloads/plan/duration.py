"""Steps, hours and money of a run."""

import math
from dataclasses import dataclass

from workloads.config.sections import Profile
from workloads.plan.speed import Speed

_MINUTE, _CENT = 60, 0.01
# Seconds of a unit, its name, and the seconds from which the next one is shorter.
_UNITS = ((1, "s", 90), (60, "min", 5400), (3600, "h", math.inf))


@dataclass(frozen=True)
class Duration:
    """Duration of a run; rows and steps are None where the number of rows is unknown.

    seconds: expected, least, most, of all steps or, without them, of a million tokens.
    """

    rows: int | None
    steps: int | None
    tokens: int
    seconds: tuple[float, float, float]
    source: str


def duration_of(
    config: Profile, length: int, world: int, speed: Speed, rows: int | None
) -> Duration:
    """Duration of a profile on rows of `length` tokens, padding included."""
    batch = config.train.per_device_batch_size * config.accumulation_steps(world) * world
    steps = config.train.max_steps
    if steps is None and rows is not None:
        samples = config.samples_of(rows)
        steps = math.ceil(config.train.epochs * math.ceil(samples / batch))
    tokens = steps * batch * length if steps is not None else 1_000_000
    return Duration(rows, steps, tokens, speed.seconds(tokens), speed.source)


def lines(duration: Duration, price: float | None, gpus: int) -> list[str]:
    """For people: time with its range, its source, and money where a price is given."""
    expected, least, most = duration.seconds
    of = "a million tokens"
    if duration.steps is not None:
        of = f"{duration.steps:,} steps of {duration.tokens // duration.steps:,} tokens"
    time = f"{span(expected)} ({span(least)} to {span(most)})"
    found = [f"{of}: {time}, at {duration.source}"]
    if most < _MINUTE and duration.steps is not None:
        # A small model's kernels take longer to start than to run, which is not counted here.
        found = [
            f"{of}: less than a minute of computing, at {duration.source}; starting so many steps "
            "may take longer"
        ]
    if duration.steps is None:
        found.append("how many rows there are is not known here; give --rows N")
    if price is not None:
        money = [price * gpus * seconds / 3600 for seconds in duration.seconds]
        shown = f"{_dollars(money[0])} ({_dollars(money[1])} to {_dollars(money[2])})"
        if money[2] < _CENT:
            shown = "less than a cent"
        which = "one GPU" if gpus == 1 else f"each of {gpus} GPUs"
        found.append(f"{shown} at ${price:,.2f} an hour for {which}")
    return found


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= _CENT else "under a cent"


def span(seconds: float) -> str:
    """Seconds in words: never zero, and two digits at least."""
    if seconds < 1:
        return "under 1 s"
    size, unit = next((size, unit) for size, unit, below in _UNITS if seconds < below)
    count = seconds / size
    return f"{count:.1f} {unit}" if count < 9.95 or unit == "h" else f"{count:.0f} {unit}"
