"""Export of a run: a model folder and its card."""
