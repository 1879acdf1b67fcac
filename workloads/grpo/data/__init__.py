"""Questions about images and texts: rows, images, generated scenes, prompt lengths."""

from workloads.grpo.data.rows import generate_scenes

__all__ = ["generate_scenes"]
