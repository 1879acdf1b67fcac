"""Runs in a terminal: live, printed once, listed."""
