"""The trainer that every workload shares, its arguments, callbacks and checkpoints."""
