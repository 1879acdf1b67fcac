"""The settings of a run: one place merges them, sections declare them."""

from workloads.config.merge import Provenance, load_dump, resolve

__all__ = ["Provenance", "load_dump", "resolve"]
