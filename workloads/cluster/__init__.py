"""Profiles on a cluster: rendered for its scheduler and submitted."""
