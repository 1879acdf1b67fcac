"""What a run needs before it starts: memory, disk, time and money, all without torch."""

from workloads.plan.measured_rows import predict_row

__all__ = ["predict_row"]
