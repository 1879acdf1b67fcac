"""Predicts a run's memory, disk, time and money before it starts, without torch."""

from workloads.plan.measured_rows import predict_row

__all__ = ["predict_row"]
