"""Completions of a step: the engines that generate them, and the log of rollouts."""
