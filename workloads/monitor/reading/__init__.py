"""Reads run directories as they grow: the only reader behind text and HTML."""
