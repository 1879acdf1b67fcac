"""What a run needs before it starts: memory, disk, FLOPs, all without torch."""
