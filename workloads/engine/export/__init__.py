"""What a run publishes: a model folder and its card."""
