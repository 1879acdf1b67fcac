"""Selection, order and labels of a run's drawn metrics."""

from collections.abc import Mapping
from dataclasses import replace

from workloads.monitor.numbers import clean
from workloads.monitor.reading.curve import Curve, Point

_FIRST = (
    "loss",
    "reward",
    "learning_rate",
    "tokens_per_second",
    "samples_per_second",
    "grad_norm",
    "seconds_per_step",
    "memory",
)
# Drawn with the loss, or of no use as a curve.
_DULL = {
    "eval_loss",
    "epoch",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
}
_FACTORS = {"memory": 1 / 2**30}  # from the unit of the files to that of the label
_LABELS = {
    "memory": "memory (GiB)",
    "eval_loss": "held-out loss",
    "learning_rate": "learning rate",
}


def metric_names(curves: Mapping[str, Curve]) -> list[str]:
    """The metrics that can be drawn, the most important first."""
    drawable = [name for name, curve in curves.items() if len(curve) > 1]
    known = [name for name in _FIRST if name in drawable]
    return [*known, *sorted(set(drawable) - set(known) - _DULL)]


def metric_points(curves: Mapping[str, Curve], name: str) -> list[Point]:
    """The points of a curve in the unit of its label; none where there is no such curve."""
    points = list(curves.get(name, ()))
    if name not in _FACTORS:
        return points
    return [
        replace(
            point,
            mean=metric_value(name, point.mean),
            low=metric_value(name, point.low),
            high=metric_value(name, point.high),
        )
        for point in points
    ]


def metric_value(name: str, value: float) -> float:
    """One value in the unit of its label."""
    return value * _FACTORS.get(name, 1.0)


def metric_label(name: str) -> str:
    return _LABELS.get(name, clean(name).replace("_", " "))
