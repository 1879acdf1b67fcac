"""DeepSpeed's ZeRO checkpoints to whole float32 weights, without DeepSpeed.

    CHECKPOINT/latest                                    the tag: a folder beside it
    CHECKPOINT/<tag>/mp_rank_00_model_states.pt          ZeRO-1, -2: module, shapes, ties
    CHECKPOINT/<tag>/zero_pp_rank_R_mp_rank_00_model_states.pt            ZeRO-3: one a rank
    CHECKPOINT/<tag>/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt     float32 shards, one a rank

The optimizer's files hold objects of DeepSpeed. They are read with stand-ins for its classes and
with torch's restricted unpickler, which runs no code of a file. Files are mapped: the optimizer's
other states, two thirds of them, are never in memory.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workloads.engine.torch_files import Say, StandIn, read_torch_file, silent
from workloads.errors import UserError

PREFIX = "_forward_module."  # prefix that Lightning before 2.1 puts before every name
_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_(model|optim)_states\.pt$")
_WHOLE = "mp_rank_00_model_states.pt"
# What else may have split a model, and the names of the files that tell it.
_OTHER_SPLITS = {
    "tensor parallelism": re.compile(r"mp_rank_(?!00_)\d+_(model|optim)_states\.pt$"),
    "experts": re.compile(r"(expert|expp_rank)_\d+_mp_rank_\d+_(model|optim)_states\.pt$"),
    "a pipeline": re.compile(r"layer_\d+-.*model_states\.pt$"),
}
_FLAT_TWO, _FLAT_THREE = "single_partition_of_fp32_groups", "fp32_flat_groups"


class _StandIn:
    """Takes the place of a class of DeepSpeed, whose state is not used."""


class _Stage(int):
    """Takes the place of DeepSpeed's enumeration of the stages of ZeRO."""


@dataclass(frozen=True)
class _Shards:
    """Content of a checkpoint's files, by rank: model states, and states of the optimizer with
    their float32 groups."""

    folder: Path
    stage: int
    models: dict[Path, dict[str, Any]]
    states: list[dict[str, Any]]
    groups: list[list[Tensor]]

    @property
    def first(self) -> dict[str, Any]:
        """Rank 0's model states, which describe the weights of all."""
        return next(iter(self.models.values()))


def to_fp32(folder: Path | str, say: Say = silent) -> dict[str, Tensor]:
    """The whole float32 weights of a ZeRO checkpoint, by the names that are stored in it.

    folder: holds `latest`, or is the tag's folder itself; say: is told how far the checksums of
    large files are. Trained parameters come from the optimizer's float32 copies; frozen ones and
    buffers from the model's own type, whole numbers as they are; a tied parameter is the same
    tensor as the one it is tied to. Each has the shape it was trained in, whole, on the host.
    Raises UserError for a missing or damaged shard, and for shards that are not of one step.
    """
    place = _tag_folder(Path(folder))
    try:
        return _joined(_read(place, say))
    # A shard may be sound as a file, and of another program or version.
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"{place}: expected shards as DeepSpeed writes them, found some that are not "
            f"({type(error).__name__}: {cause}); copy the whole folder"
        ) from error


def _joined(shards: _Shards) -> dict[str, Tensor]:
    first = shards.first
    weights = {name: _as_float(first["module"][name]) for name in first.get("buffer_names") or ()}
    weights |= _frozen(shards)
    trained = _stage_two(shards) if shards.stage <= 2 else _stage_three(shards)
    _check_step(shards, trained)
    weights |= trained
    tied: dict[str, str] = {}
    for model in shards.models.values():
        tied |= model.get("shared_params") or {}
    if shards.stage <= 2:
        # ZeRO-1 lists no frozen parameters: the module has them.
        weights |= {
            name: _as_float(value)
            for name, value in first["module"].items()
            if name not in weights and name not in tied and isinstance(value, Tensor)
        }
    for name, source in tied.items():
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
        _refuse_universal(folder)
        inside = sorted({path.parent.name for path in folder.glob("*/*zero_pp_rank_*")})
        there = f"shards in its folders {', '.join(inside)}" if inside else "neither"
        raise UserError(
            f"{folder}: expected a DeepSpeed checkpoint (a file `latest`, or shards named "
            f"zero_pp_rank_…), found {there}; name the folder that holds them"
        )
    tag = latest.read_text(encoding="utf-8-sig", errors="replace").strip()
    found = folder / tag
    if not tag or Path(tag).name != tag or not found.is_dir():
        raise UserError(f"{latest}: expected the name of a folder beside it, found {tag!r}")
    return found


def _refuse_universal(folder: Path) -> None:
    if next(folder.glob("zero/*/fp32.pt"), None):
        raise UserError(
            f"{folder}: expected shards of ZeRO, found a universal checkpoint, which was made of "
            "some; convert the folder that it was made of"
        )


def _files(folder: Path) -> dict[str, dict[int, Path]]:
    """The shards by kind, model or optim, and rank."""
    files: dict[str, dict[int, Path]] = {"model": {}, "optim": {}}
    for path in sorted(folder.iterdir()):
        for split, names in _OTHER_SPLITS.items():
            if names.search(path.name):
                raise UserError(
                    f"{path}: expected shards of a model that ZeRO alone has split, found one of "
                    f"{split}, which is not joined here; convert it with DeepSpeed"
                )
        if match := _RANK.search(path.name):
            known = files[match[2]].setdefault(int(match[1]), path)
            if known != path:
                raise UserError(
                    f"{folder}: expected one file of each rank, found {known.name} and "
                    f"{path.name}; remove the one that is not of this training"
                )
    if not files["optim"]:
        _refuse_universal(folder)
        whole = (folder / _WHOLE).is_file() and not files["model"]
        found = f"{_WHOLE} alone, as a training without ZeRO writes it" if whole else "none"
        raise UserError(
            f"{folder}: expected files zero_pp_rank_…_optim_states.pt, found {found}; copy the "
            "whole folder"
        )
    return files


def _read(folder: Path, say: Say) -> _Shards:
    files = _files(folder)
    paths = [files["optim"][rank] for rank in sorted(files["optim"])]
    states = [_states(load_shard(paths[0], say), paths[0])]
    # BF16_Optimizer is ZeRO-1 and writes no stage.
    stage = int(states[0].get("zero_stage", 1))
    ranks = _ranks(states[0]["partition_count"], paths[0])
    # Before minutes are spent on checksums.
    _check_complete(folder, files["optim"], ranks, "optim")
    models = {0: folder / _WHOLE} if stage <= 2 else files["model"]
    if stage == 3:
        _check_complete(folder, models, ranks, "model")
    elif not models[0].is_file():
        raise UserError(f"expected {models[0]}, found none; copy the whole folder")
    states += [_states(load_shard(path, say), path) for path in paths[1:]]
    for path, state in zip(paths, states, strict=True):
        _check_alike(path, states[0], state)
    key = _FLAT_TWO if stage <= 2 else _FLAT_THREE
    groups = [[group.float() for group in state[key]] for state in states]
    for rank, path in enumerate(paths):
        _check_sizes(path, groups[0], groups[rank], rank == ranks - 1)
    loaded = {models[rank]: load_shard(models[rank], say) for rank in sorted(models)}
    saved_at = {model.get("global_steps"): path for path, model in loaded.items()}
    if len(saved_at) > 1:
        steps = " and ".join(f"{step} ({path.name})" for step, path in saved_at.items())
        raise UserError(
            f"{folder}: expected model states of one step, found those of {steps}; copy the whole "
            "folder of one step"
        )
    return _Shards(folder, stage, loaded, states, groups)


def load_shard(path: Path, say: Say = silent) -> dict[str, Any]:
    """A file of the checkpoint; objects of DeepSpeed in it are stand-ins without a function.

    Raises UserError for a file that is missing, damaged, or names any other code.
    """
    loaded = read_torch_file(path, say, _stand_ins(path))
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected a mapping, found {type(loaded).__name__}")
    return loaded


def _stand_ins(path: Path) -> list[StandIn]:
    """Stand-ins for the classes of DeepSpeed that a file names: their places and number differ by
    version, and a training in fp16 has others than one in bf16."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged or missing, which is told where it is loaded
        return []
    return [
        (_Stage if name.endswith(".ZeroStageEnum") else type(name, (_StandIn,), {}), name)
        for name in named
        if name.startswith("deepspeed.")
    ]


def _states(loaded: dict[str, Any], path: Path) -> dict[str, Any]:
    states: dict[str, Any] = loaded.get("optimizer_state_dict") or {}
    if not states.keys() & {"zero_stage", _FLAT_TWO, _FLAT_THREE}:
        raise UserError(f"{path}: expected the state of a ZeRO optimizer, found none")
    return states


def _ranks(count: int | list[int], path: Path) -> int:
    """The number of ranks, which a file has for each group of parameters."""
    counts = set(count) if isinstance(count, list) else {count}
    if len(counts) != 1:
        raise UserError(
            f"{path}: expected groups split over the same ranks, found {sorted(counts)}, as with "
            "experts, which are not joined here; convert it with DeepSpeed"
        )
    return int(counts.pop())


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
    """Raise UserError where ranks are of different trainings or steps: their parts do not join."""
    for name in ("zero_stage", "partition_count"):
        if state.get(name) != first.get(name):
            raise UserError(
                f"{path}: expected {name} {first.get(name)}, as rank 0 has, found "
                f"{state.get(name)}; copy the whole folder of one training"
            )
    steps, own = set(_steps(first)), set(_steps(state))
    if steps and own and steps != own:
        raise UserError(
            f"{path}: expected the optimizer at step {max(steps):g}, as rank 0 has, found step "
            f"{max(own):g}; copy the whole folder of one step"
        )


def _steps(content: Any) -> Iterator[float]:
    """Steps that an optimizer has counted, wherever its state keeps them."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            if name in ("step", "base_optimizer_state_step"):
                yield float(value)
            elif isinstance(value, Mapping | list):
                yield from _steps(value)
    elif isinstance(content, list):
        yield from chain.from_iterable(_steps(item) for item in content)


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


def _check_step(shards: _Shards, trained: Mapping[str, Tensor]) -> None:
    """Raise UserError where a module's own copies are not the float32 weights, rounded: parts are
    then of other steps, or in the place of other ranks'.

    ZeRO-3's modules have copies of small parameters alone.
    """
    for path, model in shards.models.items():
        for name, stored in model["module"].items():
            whole = trained.get(name)
            if whole is None or whole.shape != stored.shape or not stored.is_floating_point():
                continue
            rounded, own = whole.to(stored.dtype).float(), stored.float()
            # Four units in the last place, for optimizers that round otherwise.
            near = 4 * torch.finfo(stored.dtype).eps
            if not torch.allclose(rounded, own, rtol=near, atol=1e-6, equal_nan=True):
                raise UserError(
                    f"{shards.folder}: expected shards of the step of {path.name}, found other "
                    f"values of {name} in them (up to {(rounded - own).abs().max():.3g} apart): "
                    "they are of another step, or ranks are exchanged; copy the whole folder again"
                )


def _frozen(shards: _Shards) -> dict[str, Tensor]:
    """Frozen parameters: whole in ZeRO-2, a fragment a rank in ZeRO-3."""
    found = {}
    for name, shape in dict(shards.first.get("frozen_param_shapes") or {}).items():
        fragments = [model["frozen_param_fragments"][name] for model in shards.models.values()]
        flat = torch.cat([fragment.flatten() for fragment in fragments])
        found[name] = _cut(name, flat, shape)
    return found


def _stage_two(shards: _Shards) -> dict[str, Tensor]:
    """ZeRO-2: the parameters of a group lie one after the other across the ranks, each with the
    padding that its group's list gives it."""
    found = {}
    listed = shards.states[0].get("param_alignment_paddings")
    align = 2 * len(shards.groups)  # a group's end is padded to a multiple, or cut before that
    for number, shapes in enumerate(shards.first["param_shapes"]):
        flat = torch.cat([groups[number] for groups in shards.groups])
        paddings = listed[number] if listed else [0] * len(shapes)
        start = 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            found[name] = _cut(name, flat[start:], shape)
            start += prod(shape) + padding
        if ceil(start / align) != ceil(len(flat) / align):
            raise _other_size(shards, start, len(flat))
    return found


def _stage_three(shards: _Shards) -> dict[str, Tensor]:
    """ZeRO-3: every rank holds its part of each parameter, padded to the same length."""
    flats = [torch.cat(groups) for groups in shards.groups]
    found, start = {}, 0
    for shapes in shards.first["param_shapes"]:
        for name, shape in shapes.items():
            part = ceil(prod(shape) / len(flats))
            whole = torch.cat([flat[start : start + part] for flat in flats])
            found[name] = _cut(name, whole, shape)
            start += part
    if start != len(flats[0]):
        raise _other_size(shards, start, len(flats[0]))
    return found


def _other_size(shards: _Shards, wanted: int, there: int) -> UserError:
    return UserError(
        f"{shards.folder}: expected {wanted:,} values, as its model states have, found {there:,} "
        "in the optimizer's shards; copy the whole folder of one training"
    )


def _cut(name: str, flat: Tensor, shape: torch.Size) -> Tensor:
    """The first values of a flat tensor as a parameter of its shape."""
    if flat.numel() < prod(shape):
        raise UserError(
            f"{name}: expected {prod(shape):,} values in the shards, found {flat.numel():,}; copy "
            "the whole folder"
        )
    return _as_float(flat[: prod(shape)].reshape(shape))


def _as_float(value: Tensor) -> Tensor:
    """A copy in float32; of whole numbers, which float32 might not hold, in their own type."""
    return value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
