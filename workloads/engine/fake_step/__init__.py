"""One training step on fake tensors: GPU memory without a GPU and without weights."""
