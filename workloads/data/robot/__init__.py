"""Robot demonstrations: one shape of episodes for CRANE-X7, LeRobot and RLDS data sets."""

from workloads.data.robot.episode import (
    DEFAULT_INSTRUCTION,
    Dataset,
    Episode,
    Options,
)
from workloads.data.robot.opening import open_dataset
from workloads.data.robot.statistics import statistics
from workloads.data.tfrecord import Damage, DamagedRecord

__all__ = [
    "DEFAULT_INSTRUCTION",
    "Damage",
    "DamagedRecord",
    "Dataset",
    "Episode",
    "Options",
    "open_dataset",
    "statistics",
]
