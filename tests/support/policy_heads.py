"""Policy heads of every kind, and whether an export answers as the run's last checkpoint."""

import torch

from workloads.engine.pretrained import weights
from workloads.run import Run
from workloads.run.integrity import sealed
from workloads.vla.robovlms import load_pretrained, loading

HEADS = {
    "lstm": (),
    "gpt": ("action_head.kind=gpt",),
    "fc": ("action_head.kind=fc", "action_head.history=interleaved", "action_head.state=true"),
    "discrete": ("action_head.kind=discrete", "action_head.history=interleaved"),
}


def answers_as_its_checkpoint(run: Run) -> bool:
    """Whether what was exported, loaded again, has the same logits as the newest checkpoint."""
    exported = load_pretrained(run.final)
    spec, random = exported.spec, torch.Generator().manual_seed(0)
    side, steps = loading.side(spec), 2
    ids = torch.randint(5, 60, (1, steps, 12), generator=random)
    inputs = {
        "pixel_values": torch.randn(1, steps, 2, 3, side, side, generator=random),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }
    if spec.is_discrete:
        inputs["labels"] = ids
    elif spec.state_size:
        inputs["states"] = torch.randn(1, steps, spec.state_size, generator=random)
    with torch.no_grad():
        one = exported(**inputs)
        for parameter in exported.parameters():
            parameter.zero_()  # what the checkpoint lacks would show
        state = weights.read_state(sealed(run.checkpoints)[-1], torch.float32)
        missing, unknown = exported.load_state_dict(state, strict=False)
        other = exported(**inputs)
    assert not unknown and set(missing) <= set(exported.all_tied_weights_keys)
    names = ("logits",) if spec.is_discrete else ("arm", "gripper_logits")
    assert all(one[name].abs().max() > 0 for name in names)
    return all(torch.equal(one[name], other[name]) for name in names)
