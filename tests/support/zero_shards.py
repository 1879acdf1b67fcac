"""Checkpoints in the layout of DeepSpeed's ZeRO, written without it."""

import sys
import types
import zipfile
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def write_zero(
    folder: Path,
    stage: int,
    ranks: int,
    groups: Sequence[Weights],
    dtype: torch.dtype = torch.bfloat16,
    step: int = 3,
    loss_scaler: Any = None,
    frozen: Weights | None = None,
    buffers: Weights | None = None,
    shared: Mapping[str, str] | None = None,
    **more: Any,
) -> Path:
    """Write a checkpoint; more: further entries of every rank's optimizer. Returns the tag's
    folder."""
    tag = folder / f"global_step{step}"
    tag.mkdir(parents=True)
    (folder / "latest").write_text(tag.name)
    frozen, buffers, shared = frozen or {}, buffers or {}, shared or {}
    trained = {name: value for group in groups for name, value in group.items()}
    low = {name: value.to(dtype) for name, value in trained.items()}
    if stage == 3:  # placeholders
        low = {name: torch.empty(0, dtype=dtype) for name in low}
    module = {**low, **buffers} | ({} if stage == 3 else dict(frozen))
    module |= {name: module[source] for name, source in shared.items() if source in module}
    parts = _parts_two(groups, ranks) if stage <= 2 else _parts_three(groups, ranks)
    key = "single_partition_of_fp32_groups" if stage <= 2 else "fp32_flat_groups"
    for rank in range(ranks):
        flats = parts[rank]
        moments = {number: {"step": step, "exp_avg": flat} for number, flat in enumerate(flats)}
        optimizer = {
            "zero_stage": stage, "partition_count": ranks if stage == 3 else [ranks] * len(groups),
            "loss_scaler": loss_scaler, "base_optimizer_state": {"state": moments}, key: flats,
            **more,
        }  # fmt: skip
        prefix = "bf16_zero" if dtype == torch.bfloat16 else "zero"
        name = f"{prefix}_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer}, tag / name)
    shapes = [{name: value.shape for name, value in group.items()} for group in groups]
    state: dict[str, Any] = {
        "module": module, "buffer_names": list(buffers), "param_shapes": shapes,
        "shared_params": dict(shared), "global_steps": step,
    }  # fmt: skip
    fragments: list[Any] = [None] * ranks
    if stage > 1:  # ZeRO-1 lists none
        state["frozen_param_shapes"] = {name: value.shape for name, value in frozen.items()}
        cut = (
            [_parts_three([frozen], ranks)[rank][0] for rank in range(ranks)] if stage == 3 else []
        )
        for rank in range(ranks):
            fragments[rank] = _fragments(frozen, cut[rank], ranks) if cut else dict(frozen)
    if stage <= 2:
        state["frozen_param_fragments"] = fragments[0]
        torch.save(state, tag / "mp_rank_00_model_states.pt")
    else:
        for rank in range(ranks):
            own = state | {"frozen_param_fragments": fragments[rank]}
            torch.save(own, tag / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    return tag


def _parts_two(groups: Sequence[Weights], ranks: int) -> list[list[Tensor]]:
    """Each group flat and padded, cut in as many parts as ranks, the last less its padding."""
    parts: list[list[Tensor]] = [[] for _ in range(ranks)]
    for group in groups:
        flat = torch.cat([value.flatten() for value in group.values()])
        size = 2 * ranks * ceil(len(flat) / (2 * ranks))
        padded = torch.cat([flat, torch.zeros(size - len(flat))])
        for rank, part in enumerate(padded.chunk(ranks)):
            lean = len(part) - (size - len(flat)) if rank == ranks - 1 else len(part)
            parts[rank].append(part[: max(0, lean)].clone())
    return parts


def _parts_three(groups: Sequence[Weights], ranks: int) -> list[list[Tensor]]:
    """Each weight flat, padded to the ranks, cut in as many parts; a rank's parts in a row."""
    parts: list[list[Tensor]] = [[] for _ in range(ranks)]
    for group in groups:
        cut: list[list[Tensor]] = [[] for _ in range(ranks)]
        for value in group.values():
            size = ceil(value.numel() / ranks)
            padded = torch.full((size * ranks,), 7.0)  # padding may hold anything
            padded[: value.numel()] = value.flatten().float()
            for rank in range(ranks):
                cut[rank].append(padded[rank * size : (rank + 1) * size])
        for rank in range(ranks):
            parts[rank].append(torch.cat(cut[rank]) if cut[rank] else torch.empty(0))
    return parts


def _fragments(frozen: Weights, flat: Tensor, ranks: int) -> dict[str, Tensor]:
    found, start = {}, 0
    for name, value in frozen.items():
        size = ceil(value.numel() / ranks)
        found[name] = flat[start : start + size].to(value.dtype)
        start += size
    return found


def fake_class(monkeypatch: pytest.MonkeyPatch, path: str) -> type:
    """A class that pickles under a full name whose module is not installed."""
    module, _, name = path.rpartition(".")
    made = type(name, (), {"__module__": module})
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        package = ".".join(parts[:count])
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    setattr(sys.modules[module], name, made)
    return made


def flip(file: Path, record: str = "") -> str:
    """Flip one bit in the middle of the record of an archive whose name ends so, or the largest.

    Returns its name.
    """
    with zipfile.ZipFile(file) as archive:
        found = [item for item in archive.infolist() if item.filename.endswith(record)]
    item = max(found, key=lambda item: item.file_size)
    content = bytearray(file.read_bytes())
    start = item.header_offset
    names, extra = (
        int.from_bytes(content[start + at : start + at + 2], "little") for at in (26, 28)
    )
    content[start + 30 + names + extra + item.file_size // 2] ^= 0x10
    file.write_bytes(content)
    return item.filename
