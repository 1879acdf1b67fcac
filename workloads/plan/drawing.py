"""The memory of a step by moment, as a stacked image."""

from dataclasses import asdict
from pathlib import Path

from workloads.device import GIB, MIB
from workloads.errors import UserError
from workloads.plan.estimate import Breakdown
from workloads.run.memory_parts import LABELS


def draw(breakdown: Breakdown, file: Path) -> None:
    """Write a PNG; UserError where the shape is unknown or the file cannot be written."""
    if breakdown.total is None:
        raise UserError(breakdown.unknown or "memory cannot be predicted")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    unit, size = ("GiB", GIB) if breakdown.gpu.total >= GIB else ("MiB", MIB)
    moments = breakdown.moments
    names = [name for name in LABELS if any(asdict(moment.memory)[name] for moment in moments)]
    heights = [[asdict(moment.memory)[name] / size for moment in moments] for name in names]
    figure, axes = pyplot.subplots(figsize=(9, 5))
    places = range(len(moments))
    axes.stackplot(places, heights, labels=[LABELS[name] for name in names])
    axes.set_xticks(list(places), [moment.name.replace(" pass", "\npass") for moment in moments])
    axes.set_ylabel(f"{unit} allocated on one GPU")
    axes.margins(x=0)
    axes.legend(loc="upper left", fontsize="small")
    try:
        figure.savefig(file, dpi=120, bbox_inches="tight", format="png")
    except OSError as error:
        raise UserError(
            f"{file}: cannot be written: {error.strerror}; name another file with --png"
        ) from None
    finally:
        pyplot.close(figure)
