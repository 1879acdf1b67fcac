"""Runs in a browser: the web view and the report of a run."""
