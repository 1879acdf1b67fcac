"""RoboVLMs' policies: vision-language models with a policy head that has a memory."""

from typing import TYPE_CHECKING, Any

from workloads.vla.robovlms.config import import_config

if TYPE_CHECKING:
    from workloads.vla.robovlms.checkpoint import load_pretrained

__all__ = ["import_config", "load_pretrained"]


def __getattr__(name: str) -> Any:
    """Reading a config loads no torch; a checkpoint does."""
    if name == "load_pretrained":
        from workloads.vla.robovlms.checkpoint import load_pretrained

        return load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
