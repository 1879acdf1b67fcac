"""Completions of a step: who writes them, and what is kept of them."""
