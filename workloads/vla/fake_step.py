"""One step of the vla workload on fake tensors; see `workloads.engine.fake_step`."""

from workloads.engine.fake_step.step import FakeStep, Fields
from workloads.vla.config import VlaConfig
from workloads.vla.family import family_of


def build(config: VlaConfig, fields: Fields) -> FakeStep:
    """The policy with its head and adapter, and a micro-batch of images and full rows."""
    return family_of(config).fake_step(config, fields)
