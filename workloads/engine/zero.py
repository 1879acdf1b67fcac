"""DeepSpeed's ZeRO-2 and ZeRO-3 checkpoints to whole float32 weights, without DeepSpeed.

    CHECKPOINT/latest                                    the tag: a folder beside it
    CHECKPOINT/<tag>/mp_rank_00_model_states.pt          ZeRO-2: module, shapes, ties
    CHECKPOINT/<tag>/zero_pp_rank_R_mp_rank_00_model_states.pt            ZeRO-3: one a rank
    CHECKPOINT/<tag>/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt     float32 shards, one a rank

The optimizer's files hold objects of DeepSpeed. They are read with three stand-ins for its classes
and with torch's restricted unpickler, which runs no code of a file.
"""

import re
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workloads.errors import UserError

PREFIX = "_forward_module."  # prefix that Lightning before 2.1 puts before every name
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_(model|optim)_states\.pt$")
_OTHER_PARTS = re.compile(r"mp_rank_(?!00_)\d+_(model|optim)_states\.pt$")


class LossScaler:
    """Stands in for deepspeed.runtime.fp16.loss_scaler.LossScaler; its state is not used."""

    __module__ = "deepspeed.runtime.fp16.loss_scaler"


class ZeroStageEnum(int):
    """Stands in for deepspeed.runtime.zero.config.ZeroStageEnum."""

    __module__ = "deepspeed.runtime.zero.config"


class fragment_address:  # noqa: N801  the name that the files have
    """Stands in for deepspeed.utils.tensor_fragment.fragment_address; its state is not used."""

    __module__ = "deepspeed.utils.tensor_fragment"


@dataclass(frozen=True)
class _Shards:
    """Content of a checkpoint's files: model states and float32 groups, by rank."""

    stage: int
    models: list[dict[str, Any]]
    groups: list[list[Tensor]]


def to_fp32(folder: Path | str) -> dict[str, Tensor]:
    """The whole float32 weights of a ZeRO checkpoint, by the names that are stored in it.

    folder: holds `latest`, or is the tag's folder itself. Trained parameters come from the
    optimizer's float32 copies; frozen ones and buffers from the model's own type; a tied parameter
    is the same tensor as the one it is tied to. Each has the shape it was trained in, whole, on the
    host. Raises UserError for a missing or damaged shard.
    """
    place = _tag_folder(Path(folder))
    try:
        return _joined(_read(place))
    # A shard may be sound as a file, and of another program or version.
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{place}: expected shards as DeepSpeed writes them, found some that are not "
            f"({type(error).__name__}: {error}); copy the whole folder"
        ) from error


def _joined(shards: _Shards) -> dict[str, Tensor]:
    first = shards.models[0]
    weights = {name: first["module"][name].float() for name in first.get("buffer_names") or ()}
    weights |= _frozen(shards)
    weights |= _stage_two(shards) if shards.stage <= 2 else _stage_three(shards)
    for model in shards.models:
        for name, source in dict(model.get("shared_params") or {}).items():
            if source not in weights:
                raise UserError(f"expected {source}, which {name} is tied to, found no such weight")
            weights[name] = weights[source]
    return weights


def without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, of any shapes, without the prefix of a trainer's wrapper."""
    return {name.removeprefix(PREFIX): weight for name, weight in weights.items()}


def _tag_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"expected a folder of a DeepSpeed checkpoint, found none at {folder}")
    latest = folder / "latest"
    if not latest.is_file():
        if any(_RANK.search(path.name) for path in folder.iterdir()):
            return folder
        inside = sorted({path.parent.name for path in folder.glob("*/*zero_pp_rank_*")})
        there = f"shards in its folders {', '.join(inside)}" if inside else "neither"
        raise UserError(
            f"{folder}: expected a DeepSpeed checkpoint (a file `latest`, or shards named "
            f"zero_pp_rank_…), found {there}; name the folder that holds them"
        )
    tag = latest.read_text(encoding="utf-8", errors="replace").strip()
    found = folder / tag
    if not tag or Path(tag).name != tag or not found.is_dir():
        raise UserError(f"{latest}: expected the name of a folder beside it, found {tag!r}")
    return found


def _read(folder: Path) -> _Shards:
    files: dict[str, dict[int, Path]] = {"model": {}, "optim": {}}
    for path in sorted(folder.iterdir()):
        if _OTHER_PARTS.search(path.name):
            raise UserError(
                f"{path}: expected shards of a model that ZeRO alone has split, found one of "
                "tensor parallelism, which is not joined here; convert it with DeepSpeed"
            )
        if match := _RANK.search(path.name):
            known = files[match[2]].setdefault(int(match[1]), path)
            if known != path:
                raise UserError(
                    f"{folder}: expected one file of each rank, found {known.name} and "
                    f"{path.name}; remove the one that is not of this training"
                )
    if not files["optim"]:
        raise UserError(f"{folder}: expected files zero_pp_rank_…_optim_states.pt, found none")
    models = files["model"] or {0: folder / "mp_rank_00_model_states.pt"}
    optimizers = {rank: _load(path) for rank, path in sorted(files["optim"].items())}
    states = [_states(optimizers[rank], files["optim"][rank]) for rank in sorted(optimizers)]
    stage = int(states[0]["zero_stage"])
    count = states[0]["partition_count"]
    ranks = max(count) if isinstance(count, list) else int(count)
    _check_complete(folder, files["optim"], ranks, "optim")
    if stage == 3:
        _check_complete(folder, models, ranks, "model")
    key = "single_partition_of_fp32_groups" if stage <= 2 else "fp32_flat_groups"
    groups = [[group.float() for group in state[key]] for state in states]
    for rank, state in enumerate(states):
        _check_alike(files["optim"][rank], states[0], state)
        _check_sizes(files["optim"][rank], groups[0], groups[rank], rank == ranks - 1)
    return _Shards(stage, [_load(models[rank]) for rank in sorted(models)], groups)


def _states(loaded: dict[str, Any], path: Path) -> dict[str, Any]:
    states: dict[str, Any] = loaded.get("optimizer_state_dict") or {}
    if "zero_stage" not in states:
        raise UserError(f"{path}: expected the state of a ZeRO optimizer, found none")
    return states


def _check_complete(folder: Path, files: dict[int, Path], ranks: int, kind: str) -> None:
    missing = [rank for rank in range(ranks) if rank not in files]
    if missing:
        names = ", ".join(map(str, missing))
        raise UserError(
            f"{folder}: expected {kind} states of {ranks} ranks, found none of rank {names}; copy "
            "the whole folder"
        )
    if more := sorted(rank for rank in files if rank >= ranks):
        names = ", ".join(files[rank].name for rank in more)
        raise UserError(
            f"{folder}: expected {kind} states of {ranks} ranks, found {names} too, as a training "
            "on more ranks leaves them; remove the files that are not of this one"
        )


def _check_alike(path: Path, first: dict[str, Any], state: dict[str, Any]) -> None:
    """Raise UserError where ranks are of different trainings: their parts do not join."""
    for name in ("zero_stage", "partition_count"):
        if state[name] != first[name]:
            raise UserError(
                f"{path}: expected {name} {first[name]}, as rank 0 has, found {state[name]}; copy "
                "the whole folder of one training"
            )


def _check_sizes(path: Path, first: list[Tensor], groups: list[Tensor], is_last: bool) -> None:
    """Raise UserError where a rank's part is of another size: all behind it would be shifted.

    The last rank's may be written without its padding.
    """
    wanted, found = [len(group) for group in first], [len(group) for group in groups]
    without_padding = (
        is_last
        and len(wanted) == len(found)
        and all(own <= size for size, own in zip(wanted, found, strict=True))
    )
    if found != wanted and not without_padding:
        raise UserError(
            f"{path}: expected groups of {wanted} values, as rank 0 has, found {found}; copy the "
            "whole folder"
        )


def _load(path: Path) -> dict[str, Any]:
    """Load a file of the checkpoint without running code in it."""
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"expected {path}, found none; copy the whole folder") from None
    # A damaged archive raises one of many kinds, by where the damage lies.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: expected a shard that can be read, found: {reason}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected a mapping, found {type(loaded).__name__}")
    return loaded


def _frozen(shards: _Shards) -> dict[str, Tensor]:
    """Frozen parameters: whole in ZeRO-2, a fragment a rank in ZeRO-3."""
    found = {}
    for name, shape in dict(shards.models[0].get("frozen_param_shapes") or {}).items():
        fragments = [model["frozen_param_fragments"][name] for model in shards.models]
        flat = torch.cat([fragment.flatten() for fragment in fragments])
        found[name] = _cut(name, flat, shape)
    return found


def _stage_two(shards: _Shards) -> dict[str, Tensor]:
    """ZeRO-2: the parameters of a group lie one after the other across the ranks."""
    found = {}
    for number, shapes in enumerate(shards.models[0]["param_shapes"]):
        flat = torch.cat([groups[number] for groups in shards.groups])
        start = 0
        for name, shape in shapes.items():
            found[name] = _cut(name, flat[start:], shape)
            start += prod(shape)
    return found


def _stage_three(shards: _Shards) -> dict[str, Tensor]:
    """ZeRO-3: every rank holds its part of each parameter, padded to the same length."""
    flats = [torch.cat(groups) for groups in shards.groups]
    found, start = {}, 0
    for shapes in shards.models[0]["param_shapes"]:
        for name, shape in shapes.items():
            part = ceil(prod(shape) / len(flats))
            whole = torch.cat([flat[start : start + part] for flat in flats])
            found[name] = _cut(name, whole, shape)
            start += part
    return found


def _cut(name: str, flat: Tensor, shape: torch.Size) -> Tensor:
    """The first values of a flat tensor as a parameter of its shape, in float32."""
    if flat.numel() < prod(shape):
        raise UserError(
            f"{name}: expected {prod(shape):,} values in the shards, found {flat.numel():,}; copy "
            "the whole folder"
        )
    return flat[: prod(shape)].reshape(shape).float().clone()
