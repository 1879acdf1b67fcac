"""The run directory: what a training writes and every other tool reads (docs/run-directory.md)."""

from workloads.run.directory import Run, find, new_id, outputs
from workloads.run.integrity import verify_checkpoint
from workloads.run.manifest import start, write_manifest
from workloads.run.owner import Owner

__all__ = [
    "Owner",
    "Run",
    "find",
    "new_id",
    "outputs",
    "start",
    "verify_checkpoint",
    "write_manifest",
]
