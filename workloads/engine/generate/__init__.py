"""Text from a causal model: many prompts at a time, with or without images."""

from workloads.engine.generate.generate import Progress, Prompt, generate, stream

__all__ = ["Progress", "Prompt", "generate", "stream"]
