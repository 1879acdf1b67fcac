"""SuperCLEVR and GEOQA as R1-V scores them, and held-out rows of a run."""

from workloads.grpo.evaluate.tasks import score_geoqa, score_superclevr

__all__ = ["score_geoqa", "score_superclevr"]
