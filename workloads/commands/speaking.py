"""What `tatara chat`, `generate` and `serve` have alike: a model, its adapters, how it is drawn."""

import argparse
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.errors import UserError
from workloads.run import Run, outputs
from workloads.run.models import exported_model, final_of

if TYPE_CHECKING:
    from workloads.llm.speaker import Sampling, Speaker
    from workloads.llm.vllm_speaker import VllmSpeaker


def add_speaker(
    parser: argparse.ArgumentParser, options: argparse._ActionsContainer | None = None
) -> None:
    """Add RUN|MODEL, and to the group of `options`, if any, --adapter and --precision."""
    parser.add_argument(
        "model",
        metavar="RUN|MODEL",
        help="a run (folder, profile, id or its start, latest), or a model's folder or hub name",
    )
    options = options or parser
    options.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="one more adapter over the same base, or its run's folder; may be given again",
    )
    options.add_argument("--precision", choices=["bf16", "fp16", "fp32"], help="default: the run's")


def add_engine(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--engine",
        choices=["transformers", "vllm"],
        help="who writes the answers (default: vllm on a GPU that has it)",
    )


def engine_of(args: argparse.Namespace) -> str:
    """Who writes the answers: vLLM where it and a GPU are there, or as the arguments say.

    Raises UserError where vLLM is asked for and not installed.
    """
    from workloads.device import gpu_count

    has_vllm = find_spec("vllm") is not None
    if args.engine == "vllm" and not has_vllm:
        raise UserError(
            "--engine vllm: expected the package vllm, found none; use the image of grpo-h100, "
            "build that of llm-4090 with VLLM=yes, or take --engine transformers"
        )
    return str(args.engine or ("vllm" if has_vllm and gpu_count() else "transformers"))


def add_sampling(parser: argparse.ArgumentParser, max_new_tokens: int, temperature: float) -> None:
    """Add the options of how tokens are drawn."""
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"longest answer ({max_new_tokens})",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        help=f"of sampling ({temperature:g}; at 0 always the likeliest token)",
    )
    parser.add_argument("--top-p", type=float, default=0.9, help="of sampling (0.9)")
    parser.add_argument("--top-k", type=int, default=50, help="of sampling (50)")
    parser.add_argument("--seed", type=int, help="the same answers again")


def sampling_of(args: argparse.Namespace) -> "Sampling":
    """How tokens are drawn, by the arguments; UserError for a number out of its range."""
    from workloads.llm.speaker import Sampling

    in_range = 0 <= args.temperature < math.inf and 0 < args.top_p <= 1 and args.top_k >= 0
    if args.max_new_tokens < 1 or not in_range:
        raise UserError(
            "expected --max-new-tokens of 1 or more, --temperature of 0 or more, --top-p above 0 "
            "and up to 1, --top-k of 0 or more; correct the one that is not"
        )
    return Sampling(
        args.max_new_tokens,
        args.temperature == 0,
        args.temperature or 1.0,
        args.top_p,
        args.top_k,
        args.seed,
    )


def adapters_of(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of further adapters by their names; of a run, what it exported.

    Raises UserError for a folder that is not there, or a name that comes twice.
    """
    found: dict[str, Path] = {}
    for pair in args.adapter:
        name, equals, folder = pair.partition("=")
        if not (equals and name and Path(folder).expanduser().is_dir()):
            raise UserError(
                f"--adapter: expected NAME=DIR, a saved adapter or its run, found {pair!r}"
            )
        if name in found:
            raise UserError(f"--adapter: expected a new name for {folder}, found {name!r} again")
        place = Path(folder).expanduser()
        is_run = (place / "manifest.json").is_file()
        found[name] = final_of(Run(place)) if is_run else place
    return found


def speaker_of(
    args: argparse.Namespace, env: dict[str, str], with_base: bool = False
) -> "tuple[Speaker, Speaker | None]":
    """The model that the arguments name with its adapters, and its base where that is asked for.

    Raises UserError for a base beside a model that no run here made from one.
    """
    adapters = adapters_of(args)
    name, run = exported_model(args.model, outputs(env), "llm")
    config = run.config() if run else None
    precision = args.precision or (config.train.precision if config else "bf16")
    from workloads.llm.speaker import load

    def silent(text: str) -> None:
        """Which attention is used is of no interest to who talks."""

    data = config.data if config is not None and config.workload == "llm" else None
    speaker = load(name, precision, silent, data)
    for adapter, folder in adapters.items():
        speaker.add_adapter(adapter, folder)
    if not with_base or speaker.adapters:
        return speaker, speaker if with_base else None
    if config is None or config.model.random_init:
        raise UserError(
            "--compare base: expected a run whose base is a trained model, or an adapter, found "
            f"{args.model}; leave it out"
        )
    return speaker, load(config.model.name, precision, silent, data)


def vllm_speaker_of(args: argparse.Namespace, env: dict[str, str]) -> "VllmSpeaker":
    """The model that the arguments name, in vLLM, with the last of its adapters."""
    from workloads.llm.vllm_speaker import VllmSpeaker

    name, run = exported_model(args.model, outputs(env), "llm")
    config = run.config() if run else None
    precision = args.precision or (config.train.precision if config else "bf16")
    data = config.data if config is not None and config.workload == "llm" else None
    return VllmSpeaker(name, precision, data, adapters_of(args), report)


def report(text: str) -> None:
    print(f"tatara: {text}", file=sys.stderr, flush=True)
