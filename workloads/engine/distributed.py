"""The process group of a job, and collectives over Python values and files."""

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from workloads.device import gpu_count
from workloads.engine.memory_errors import is_out_of_memory
from workloads.errors import (
    EXIT_FAILED,
    EXIT_RETRY,
    EXIT_USER,
    Retry,
    Stopped,
    TataraError,
    UserError,
)

_CHUNK = 16 << 20
T = TypeVar("T")


def join(hang_timeout: float) -> None:
    """Join the process group; with GPUs it carries CPU tensors over gloo as well.

    A rank alone on a GPU has a group too: accelerate (1.15) would make one for it, as for any rank
    that torchrun started, of NCCL alone, which refuses the CPU tensors that ranks agree by. The
    back end's own timeout is far longer than `hang_timeout`: the supervisor names a rank that
    hangs before torch gives up without a name. Raises UserError where torch cannot use the GPUs
    that are here.
    """
    gpu = torch.cuda.is_available()
    if not gpu:
        _refuse_idle_gpus()
    is_alone = int(os.environ["WORLD_SIZE"]) == 1
    if dist.is_initialized() or (is_alone and not gpu):
        return
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    seconds = max(1800.0, 4 * hang_timeout)
    dist.init_process_group(
        backend="cuda:nccl,cpu:gloo" if gpu else "gloo",
        timeout=datetime.timedelta(seconds=seconds),
    )


def _refuse_idle_gpus() -> None:
    """Raise UserError where torch uses none of the driver's GPUs: it would train on the CPU."""
    count = gpu_count()
    if not count:
        return
    try:
        torch.cuda.init()
        reason = "it gives no reason"
    except (RuntimeError, AssertionError) as error:  # the latter for a build without CUDA
        reason = str(error).strip().splitlines()[0]
    raise UserError(
        f"expected torch {torch.__version__} to use the {count} GPU that the driver shows, found: "
        f"{reason}; `tatara doctor` compares driver and torch, and CUDA_VISIBLE_DEVICES= (empty) "
        "trains on the CPU"
    )


def leave() -> None:
    """Leave together: a rank that leaves early would count as lost."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def node() -> int:
    """This machine's number, as torchrun gives it; 0 for a process that was started alone."""
    return int(os.environ.get("GROUP_RANK", 0))


def is_first_of_node() -> bool:
    """Whether this rank is the first of its node, which does the node's shared work."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def barrier() -> None:
    """Wait for all ranks, over the CPU back end."""
    agree(False)


def agree(mine: bool) -> bool:
    """Whether any rank says yes; the same answer on all."""
    if not dist.is_initialized():
        return mine
    flag = torch.tensor([int(mine)], dtype=torch.int32)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def totals(mine: list[int]) -> list[int]:
    """The sums of every rank's numbers."""
    if not dist.is_initialized():
        return mine
    numbers = torch.tensor(mine, dtype=torch.int64)
    dist.all_reduce(numbers)
    return [int(number) for number in numbers]


def from_main(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def all_or_none(problem: Exception | None, what: str) -> None:
    """Raise on every rank where any has a problem, so that none waits for one that has left.

    All end with the exit code of the first that has one: a retry of one is a retry of all.
    """
    mine = (str(problem), getattr(problem, "exit_code", EXIT_FAILED)) if problem else None
    problems = [theirs for theirs in gather(mine) if theirs]
    if problem is not None:
        raise problem
    if problems:
        text, code = problems[0]
        kind = {EXIT_USER: UserError, EXIT_RETRY: Retry}.get(code, TataraError)
        raise kind(f"{what}: {text}")


def together(work: Callable[[], T], what: str) -> T:
    """Do a rank's share of some work and return its result; raise on all ranks if one fails.

    Then none waits for one that has left. Lack of GPU memory is such a failure, and a stop of one
    rank is a stop of all. Work that needs other ranks itself must not fail on some of them.
    """
    problem: TataraError | None = None
    try:
        result = work()
    except TataraError as error:
        problem = error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Without the error itself, which holds the tensors.
        problem = TataraError(f"rank {rank()} is out of memory: {str(error).splitlines()[0]}")
    if agree(isinstance(problem, Stopped)):
        raise problem if isinstance(problem, Stopped) else Stopped(f"stopped during {what}")
    all_or_none(problem, what)
    return result


def send_folder(folder: Path, source: int, targets: list[int]) -> None:
    """Copy every file of `folder` from one rank's disk to the others'; all ranks take part.

    A rank that is neither only waits. Existing files of a target are replaced.
    """
    me = rank()
    listing: Any = None
    if me == source:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        listing = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
    box = [listing]
    dist.broadcast_object_list(box, src=source, device=torch.device("cpu"))
    for name, size in box[0]:
        if me == source:
            _send(folder / name, size, targets)
        elif me in targets:
            _receive(folder / name, size, source)


def _send(path: Path, size: int, targets: list[int]) -> None:
    with path.open("rb") as file:
        for _ in range(0, size, _CHUNK):
            piece = torch.frombuffer(bytearray(file.read(_CHUNK)), dtype=torch.uint8)
            for target in targets:
                dist.send(piece, dst=target)


def _receive(path: Path, size: int, source: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, _CHUNK):
            piece = torch.empty(min(_CHUNK, size - start), dtype=torch.uint8)
            dist.recv(piece, src=source)
            file.write(piece.numpy().tobytes())
