"""Names and limits of the dimensions of states and actions."""

from workloads.data.robot.crane_x7.tfrecords import DATASET_NAME, JOINT_LIMITS
from workloads.data.robot.episode import Dataset


def joint_limits(dataset: Dataset, size: int) -> tuple[tuple[float, float], ...] | None:
    """The robot's limits per dimension in rad, None where the data is not of a CRANE-X7."""
    return JOINT_LIMITS if dataset.name == DATASET_NAME and size == len(JOINT_LIMITS) else None


def dimension_name(dataset: Dataset, what: str, size: int, number: int) -> str:
    """Name of a dimension, or its number; what: "action" or "state"."""
    names = dataset.action_names if what == "action" else dataset.state_names
    return names[number] if names is not None and len(names) == size else f"dimension {number}"
