"""Join the shards of a DeepSpeed ZeRO checkpoint (stage 1, 2 or 3) into one safetensors file of
float32 weights, without DeepSpeed. Every file's checksums are compared first; frozen and tied
parameters and buffers are restored; no code of a file is run."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from workloads.errors import EXIT_DONE, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the checkpoint's folder, which holds `latest`"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path,
        help="file to write, which must not exist (default: DIR/model.safetensors)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-names",
        action="store_true",
        help="keep the prefix _forward_module. that a trainer put before every name",
    )


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Convert the checkpoint and print what was written. Raises UserError for a taken name."""
    target: Path = args.output or args.folder / "model.safetensors"
    if target.exists():
        raise UserError(f"{target}: expected a name that is free, found a file; give another one")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from workloads.engine.zero import to_fp32, without_prefix

    weights = to_fp32(args.folder, lambda text: print(text, file=sys.stderr, flush=True))
    if not args.keep_names:
        weights = without_prefix(weights)
    seen: dict[int, str] = {}
    for name, weight in weights.items():
        if (first := seen.get(weight.data_ptr())) and weight.numel():
            print(f"tied: {name} = {first}")
            weights[name] = weight.clone()
        seen.setdefault(weight.data_ptr(), name)
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, partial)
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{target}: cannot be written: {error}; free space, or give another --output"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    count = sum(weight.numel() for weight in weights.values())
    types = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()})
    print(f"{target}: {len(weights)} weights, {count:,} values, {', '.join(types)}")
    return EXIT_DONE
