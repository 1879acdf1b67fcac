"""Comparison of a policy's predictions before and after its adapter is merged."""

import torch

from workloads.engine.export.exporter import Merged
from workloads.engine.pretrained.adapter import TOLERANCES
from workloads.errors import UserError


def compare_merged(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> Merged:
    """The difference of predictions, of any but the same shape; dtype: of the merged weights.

    Raises UserError where they differ by more than rounding to that type explains.
    """
    scale, difference = float(before.abs().max()), float((after - before).abs().max())
    allowed = TOLERANCES[dtype] * scale
    if not difference <= allowed:  # also where it is NaN
        raise UserError(
            f"merge: expected predictions within {allowed:.3g}, found a difference of "
            f"{difference:.3g}; export the adapter unmerged"
        )
    note = f"merged: predictions differ by at most {difference:.3g} of {scale:.3g}"
    return Merged(note, difference)
