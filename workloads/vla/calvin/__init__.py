"""CALVIN's evaluation: its tasks, sequences, scenes and figures."""

from workloads.vla.calvin.scoring import seen_tasks, success_rates
from workloads.vla.calvin.sequences import Sequence, sequences

__all__ = ["Sequence", "seen_tasks", "sequences", "success_rates"]
