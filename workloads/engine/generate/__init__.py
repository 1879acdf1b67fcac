"""Text from a causal model: many prompts at a time, with or without images."""

from workloads.engine.generate.generate import (
    BatchSize,
    Progress,
    Prompt,
    first_batch,
    generate,
    stream,
)

__all__ = ["BatchSize", "Progress", "Prompt", "first_batch", "generate", "stream"]
