"""Run directories read as they grow: the only reader behind text and HTML."""
