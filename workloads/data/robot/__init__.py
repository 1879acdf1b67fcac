"""Robot demonstrations: one interface to episodes for all dataset formats."""

from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.instructions import DEFAULT_INSTRUCTION
from workloads.data.robot.opening import open_dataset
from workloads.data.robot.options import Options
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
