"""Errors of a policy's actions on held-out steps."""
