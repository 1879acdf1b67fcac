"""Selection, order and labels of a run's drawn metrics."""

from collections.abc import Mapping

from workloads.monitor.numbers import clean
from workloads.monitor.reading.curve import Curve

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
_LABELS = {
    "memory": "memory (bytes)",
    "eval_loss": "held-out loss",
    "learning_rate": "learning rate",
}


def metric_names(curves: Mapping[str, Curve]) -> list[str]:
    """The metrics that can be drawn, the most important first."""
    drawable = [name for name, curve in curves.items() if len(curve) > 1]
    known = [name for name in _FIRST if name in drawable]
    return [*known, *sorted(set(drawable) - set(known) - _DULL)]


def metric_label(name: str) -> str:
    return _LABELS.get(name, clean(name).replace("_", " "))
