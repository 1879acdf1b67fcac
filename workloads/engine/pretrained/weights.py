"""Weights on disk: reads checkpoints of any strategy, writes a folder whole or not at all.

A checkpoint holds safetensors (one rank, DDP, DeepSpeed), shards of torch's distributed format
(FSDP2), or an adapter alone. Reading needs no other rank and no GPU.
"""

import errno
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from workloads.engine.pretrained.files import ADAPTER_CONFIG, weight_files
from workloads.errors import TataraError, UserError

SHARDS = "pytorch_model_fsdp_0"
_WRAPPINGS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.")
State = dict[str, torch.Tensor]


def layout(checkpoint: Path) -> Literal["sharded", "whole", "adapter"]:
    """The layout of a checkpoint's weights; raises UserError where it holds none."""
    if (checkpoint / SHARDS / ".metadata").is_file():
        return "sharded"
    if all((checkpoint / name).is_file() for name in weight_files(checkpoint)):
        return "whole"
    places = [checkpoint, *(path for path in checkpoint.glob("*") if path.is_dir())]
    if any((place / ADAPTER_CONFIG).is_file() for place in places):
        return "adapter"
    raise UserError(
        f"{checkpoint}: expected model.safetensors, {SHARDS}/ or an adapter, found none of them; "
        "choose a folder checkpoint-<step> of a run"
    )


def read_state(checkpoint: Path, dtype: torch.dtype) -> State:
    """A checkpoint's weights by the model's names for them, floating ones as `dtype`.

    On the host, whole. Of a `sharded` or `whole` checkpoint.
    """
    read = _read_shards if layout(checkpoint) == "sharded" else _read_files
    return {_plain_name(name): value for name, value in read(checkpoint, dtype).items()}


def _plain_name(name: str) -> str:
    for wrapping in _WRAPPINGS:
        name = name.replace(wrapping, "")
    return name


def _read_files(checkpoint: Path, dtype: torch.dtype) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: State = {}
    for name in weight_files(checkpoint):
        try:
            part = load_file(checkpoint / name)
        except SafetensorError as error:
            raise UserError(f"{checkpoint / name}: damaged ({error}); use an older one") from error
        state |= {key: as_dtype(value, dtype) for key, value in part.items()}
    return state


def _read_shards(checkpoint: Path, dtype: torch.dtype) -> State:
    """Read every shard straight into a whole tensor of the wanted type."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(checkpoint / SHARDS)
    entries = reader.read_metadata().state_dict_metadata
    state: State = {}
    for name, entry in entries.items():
        if isinstance(entry, TensorStorageMetadata):
            stored = entry.properties.dtype
            kind = dtype if stored.is_floating_point else stored
            state[name] = torch.empty(entry.size, dtype=kind)
    try:
        with warnings.catch_warnings():
            # It warns any reader without a process group.
            warnings.filterwarnings("ignore", message=".*torch.distributed is disabled")
            dcp.load(state, storage_reader=reader, no_dist=True)
    except dcp.api.CheckpointException as error:
        raise UserError(
            f"{checkpoint / SHARDS}: damaged or incomplete "
            f"({str(error).strip().splitlines()[-1]}); use an older checkpoint"
        ) from error
    # accelerate stores the model under one key of its own, the first part of the planner's paths.
    paths = reader.read_metadata().planner_data or {}
    return {_inside(name, paths.get(name)): value for name, value in state.items()}


def _inside(name: str, path: Any) -> str:
    filed = isinstance(path, tuple) and len(path) > 1 and path[0] == "model"
    return ".".join(str(part) for part in path[1:]) if filed else name


def as_dtype(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of any shape in another floating type; whole numbers stay as they are."""
    return value.to(dtype) if value.is_floating_point() else value


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Raise TataraError where a weight of any shape has a value that is not finite."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise TataraError(
                f"export: {name} holds values that are not finite in {value.dtype}; export an "
                "older checkpoint"
            )


def size_of(state: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all tensors, of any shape; shared memory is counted once."""
    storages = {value.data_ptr(): value.numel() * value.element_size() for value in state.values()}
    return sum(storages.values())


def load_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a folder's safetensors files, from their headers alone."""
    from safetensors import safe_open

    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


@contextmanager
def whole_folder(out: Path, needed: int) -> Iterator[Path]:
    """A folder to fill, which gets its name `out` only when all of it is on disk.

    needed: bytes that will be written. An earlier folder stays until then. Raises UserError where
    there is too little room, and leaves nothing half-written behind.
    """
    from safetensors import SafetensorError

    staging = out.with_name(f".{out.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        free = shutil.disk_usage(staging).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} free")
        yield staging
        _to_disk(staging)
        _take_name(staging, out)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"{out}: cannot be written: {reason}; free space or choose another folder. "
            "Checkpoints are untouched"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _take_name(staging: Path, out: Path) -> None:
    before = out.with_name(f".{out.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if out.exists():
        out.rename(before)
    os.rename(staging, out)
    shutil.rmtree(before, ignore_errors=True)
