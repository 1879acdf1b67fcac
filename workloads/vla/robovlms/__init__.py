"""Policies of RoboVLMs: vision-language models with a head that remembers."""
