"""Names and limits of the dimensions of states and actions."""

from workloads.data.robot.crane_x7.tfrecords import DATASET_NAME, JOINT_LIMITS
from workloads.data.robot.episode import Dataset

_MOST_NAMED = 16  # dimensions


def joint_limits(dataset: Dataset, size: int) -> tuple[tuple[float, float], ...] | None:
    """The robot's limits per dimension in rad, None where the data is not of a CRANE-X7."""
    return JOINT_LIMITS if dataset.name == DATASET_NAME and size == len(JOINT_LIMITS) else None


def unit(dataset: Dataset, size: int) -> str:
    """The unit of vectors with `size` dimensions, where the robot is known."""
    return "rad" if joint_limits(dataset, size) is not None else "as recorded"


def dimension_name(dataset: Dataset, what: str, size: int, number: int) -> str:
    """Name of a dimension, or its number; what: "action" or "state"."""
    names = dataset.action_names if what == "action" else dataset.state_names
    return names[number] if names is not None and len(names) == size else f"dimension {number}"


def listed(dataset: Dataset, what: str, size: int) -> str:
    """The dimensions of a vector and their unit, for a line of text; what: "action" or "state"."""
    if not size:
        return "none"
    names = dataset.action_names if what == "action" else dataset.state_names
    if names is None or len(names) != size:
        return f"{size} without names, unit {unit(dataset, size)}"
    more = f" and {size - _MOST_NAMED} more" if size > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more} ({size}, unit {unit(dataset, size)})"
