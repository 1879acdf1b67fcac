"""Check before training whether checkpoints.keep_best can have an effect."""

import math

from workloads.config.sections import Profile
from workloads.findings import Finding

_NAME = "checkpoints.keep_best"


def keep_best(config: Profile, eval_steps: int | None) -> list[Finding]:
    """Finding on keep_best; eval_steps: steps between two held-out losses, None for none.

    The best checkpoint is the one with the lowest held-out loss, measured at the step that is
    saved.
    """
    save_steps = config.checkpoints.every_steps
    if not config.checkpoints.keep_best or not save_steps:
        return []
    if not eval_steps:
        return [Finding(_NAME, "ok", "does nothing: no held-out loss is measured on the way")]
    both, last = math.lcm(save_steps, eval_steps), config.train.max_steps
    if last is not None and max(save_steps, eval_steps) > last:
        return []  # too short to save or evaluate before the end, which does both
    if last is not None and both > last:
        text = (
            f"does nothing: saved every {save_steps} steps, evaluated every {eval_steps}, and "
            f"both together only at step {both} of {last}"
        )
        fix = f"set checkpoints.every_steps to a multiple of {eval_steps}"
        return [Finding(_NAME, "warning", text, fix)]
    if both != save_steps:
        text = f"only every {both} steps a checkpoint is saved where a held-out loss is measured"
        return [Finding(_NAME, "ok", text)]
    return []
