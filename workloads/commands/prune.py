"""Show what may go, with sizes: old checkpoints of finished runs, caches, images. Nothing is
removed without --yes; downloads of the hub go only where they are named."""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from workloads.commands.common import print_json, with_environment
from workloads.environment import cache_folder
from workloads.errors import EXIT_DONE, EXIT_FAILED, TataraError, UserError
from workloads.run import outputs
from workloads.run.prune import (
    Removable,
    old_checkpoints,
    remove,
    remove_checkpoint,
    size_of,
    training_now,
)

# Folders of TATARA_CACHE that are made again when they are needed.
_MADE_AGAIN = ("inductor", "triton", "vllm", "torch", "matplotlib", "llm", "grpo", "robot")
_DOWNLOADS = ("huggingface",)
_KINDS = ("checkpoints", "caches", "images", "downloads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "kinds",
        nargs="*",
        metavar="KIND",
        help="checkpoints, caches, images or downloads (default: the first three)",
    )
    parser.add_argument(
        "--keep", type=int, default=1, metavar="N", help="checkpoints a run keeps (default 1)"
    )
    parser.add_argument("--yes", action="store_true", help="remove what is shown")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


@with_environment
def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    unknown = [kind for kind in args.kinds if kind not in _KINDS]
    if unknown:
        raise UserError(f"expected one of {', '.join(_KINDS)}, found {unknown[0]!r}")
    if args.keep < 1:
        raise UserError(f"expected --keep 1 or more, found {args.keep}; a run needs one checkpoint")
    kinds = args.kinds or _KINDS[:3]
    found = [item for kind in kinds for item in _FINDERS[kind](env, args.keep)]
    failed = _removed(found, env) if args.yes else []
    if args.json:
        print_json([{**asdict(item), "removed": args.yes and item not in failed} for item in found])
    else:
        _show(found, failed, args.yes)
    return EXIT_FAILED if failed else EXIT_DONE


def _checkpoints(env: dict[str, str], keep: int) -> Iterator[Removable]:
    yield from old_checkpoints(outputs(env), keep, _left)


def _cached(names: tuple[str, ...], kind: str, why: str) -> "_Finder":
    def find(env: dict[str, str], keep: int) -> Iterator[Removable]:
        if run := training_now(outputs(env)):
            _left(f"{kind}: {run.path} is training, and may use them")
            return
        for folder in (cache_folder(env) / name for name in names):
            if folder.is_symlink():
                _left(f"{folder}: a link to {folder.readlink()}; remove what is there yourself")
            elif folder.is_dir() and (size := size_of(folder)):
                yield Removable(kind, str(folder), size, why)

    return find


def _images(env: dict[str, str], keep: int) -> Iterator[Removable]:
    """Images of this checkout that no container uses; layers that others share stay."""
    from workloads.host.images import unused

    for name, size in unused(Path.cwd().resolve(), env):
        yield Removable("images", name, size, "no container uses it; a start builds it again")


_Finder = Callable[[dict[str, str], int], Iterator[Removable]]
_FINDERS: dict[str, _Finder] = {
    "checkpoints": _checkpoints,
    "caches": _cached(_MADE_AGAIN, "caches", "made again when it is needed"),
    "images": _images,
    "downloads": _cached(_DOWNLOADS, "downloads", "downloaded again when it is needed"),
}


def _removed(found: list[Removable], env: dict[str, str]) -> list[Removable]:
    """Remove them; those that could not be, each with a line that says why."""
    from workloads.host.images import remove_image

    failed = []
    for item in found:
        try:
            if item.kind == "images":
                remove_image(item.name, env)
            elif item.kind == "checkpoints":
                remove_checkpoint(Path(item.name))
            else:
                remove(Path(item.name))
        except TataraError as error:
            _left(str(error))
            failed.append(item)
    return failed


def _left(text: str) -> None:
    print(f"left: {text}", file=sys.stderr)


def _show(found: list[Removable], failed: list[Removable], done: bool) -> None:
    from workloads.monitor.numbers import byte_text

    for item in found:
        if not done or item not in failed:
            print(f"{byte_text(item.size):>9}  {item.kind:<11}  {item.name}  ({item.why})")
    whole = byte_text(sum(item.size for item in found if item not in failed))
    if not found:
        print("nothing may go")
    elif done:
        print(f"removed {whole}")
    else:
        own = " ".join(["tatara prune", *dict.fromkeys(item.kind for item in found)])
        print(f"{whole} may go, images less what others share; remove it with: {own} --yes")
