"""Finding on a warm-up that is longer than the training."""

import math

from workloads.config.sections import Profile
from workloads.findings import Finding


def warm_up(config: Profile, samples: int | None = None) -> list[Finding]:
    """Whether the learning rate reaches its peak.

    samples: those of an epoch, which count where `train.max_steps` is not set; None: not known yet.
    """
    wanted, steps = config.optim.warmup_steps, config.train.max_steps
    if (steps is None) is (samples is None):
        return []  # not known yet, or said already
    if steps is None and samples is not None:
        ranks = config.parallel.nodes * config.ranks_per_node(1)
        batch = config.train.global_batch_size or config.train.per_device_batch_size * ranks
        steps = math.ceil(samples / batch * config.train.epochs)
    if steps is None or wanted < 1 or wanted < steps:
        return []
    text = (
        f"{wanted:g} of {steps} steps: the learning rate ends at {steps / wanted:.0%} of its peak"
    )
    return [Finding("optim.warmup_steps", "warning", text, "lower it, or set a share such as 0.1")]
