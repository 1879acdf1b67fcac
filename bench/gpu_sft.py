"""How fast does one GPU fine-tune, and in how much memory? Beside TRL, TRL + Liger, a bare loop.

    python -m bench.gpu_sft                    # all cases; exit 2 where there is no CUDA GPU
    python -m bench.gpu_sft --cases full lora  # some of them
    python -m bench.gpu_sft --write            # and writes docs/benchmarks/gpu-sft.md

full   Llama-1B, all weights, rows of 2048, 16k tokens a step, fp32 master weights (B1)
short  the same model on rows of 400 tokens on average, packed or padded; real tokens count (B2)
lora   8B, LoRA r16 on q, k, v, o, 2 rows of 4096 a step (B3)

Weights are random and rows are random tokens, the same on all sides. Each side lives in a process
of its own, since kernels patch classes for good, and takes its turn when the others rest; what a
turn held is given back after it. Losses are compared before anything is timed. The sides
themselves are in bench/_gpu_sides.py.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from statistics import median

import torch

from bench._gpu_cases import CASES, OURS, WARM, Case
from bench._gpu_sides import Turn, missing, take_turn
from bench._pair import facts, write_page
from bench._players import GIB, play, start
from workloads.plan import mfu_flops_per_token, peak_flops

# Learning rates are as good as nothing, so that every row has the same loss whenever it comes.
TOLERANCE = 2e-3


def main() -> int:
    options = _options()
    if not torch.cuda.is_available():
        print(
            "bench.gpu_sft: expected a CUDA GPU that torch can use, found none; run it on a "
            "machine with one (80 GiB for all cases)",
            file=sys.stderr,
        )
        return 2
    parts = [run_case(CASES[name], options) for name in options.cases]
    known = facts(
        ["torch", "transformers", "trl", "peft"],
        ["workloads/llm", "workloads/engine", "bench/gpu_sft.py", "bench/_gpu_sides.py"],
        torch.cuda.get_device_name(),
    )
    print(known)
    if options.write:
        print(f"wrote {write_page('gpu-sft', [*_introduction(options), *parts, known])}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help=f"in a turn; {WARM} warm up")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/gpu-sft.md")
    return parser.parse_args()


def _introduction(options: argparse.Namespace) -> list[str]:
    return [
        "# Fine-tuning on one GPU",
        "Models of real shape with random weights on random rows, bf16 with fused AdamW and no "
        "gradient checkpointing on any side: ours by `workloads.llm.train.build_trainer` with a "
        "profile's settings, TRL's SFTTrainer with its defaults, the same with Liger's kernels, "
        "and a loop written by hand with the same fused head. Sides take turns, "
        f"{options.rounds} times after one that compares losses; a turn is {options.steps} steps, "
        f"of which the first {WARM} are not timed. Tokens are those of rows, without padding.",
        "MFU counts 6 N + 6 L H (d_qk + d_v) s FLOPs a token (4 N where only LoRA trains) against "
        "the card's dense bf16 peak. Peak is torch's own count of allocated bytes; beside ours "
        "stands what `tatara plan` says.",
        "Run it: `python -m bench.gpu_sft --write`.",
    ]


def run_case(case: Case, options: argparse.Namespace) -> str:
    """All sides of a case in turns; its part of the page."""
    left_out = {name: why for name in case.sides if (why := missing(name))}
    sides = [name for name in case.sides if name not in left_out]
    players = [start(name, partial(take_turn, case, name, options.steps)) for name in sides]
    turns, problems = play(players, options.rounds, _assert_same)
    left_out |= problems
    text = _text(case, turns, left_out)
    print(text, flush=True)
    return text


def _assert_same(first: Mapping[str, Turn]) -> None:
    """The loss over all labelled tokens of a turn is the same, however they were put together."""
    if OURS not in first:
        raise RuntimeError(f"ours has no first turn, others have: {', '.join(first)}")
    ours = first[OURS].loss
    for name, turn in first.items():
        if abs(turn.loss / ours - 1) > TOLERANCE:
            raise RuntimeError(f"{name} has a loss of {turn.loss:.5f}, ours {ours:.5f}")


def _text(case: Case, turns: Mapping[str, list[Turn]], left_out: Mapping[str, str]) -> str:
    done = {name: found for name, found in turns.items() if found and name not in left_out}
    heads = ["side", "tokens/s", "MFU", "peak", "planned", "ours is faster by (range)", "goal"]
    lines = [heads, ["---"] * len(heads)]
    lines += [_row(case, name, found, done[OURS]) for name, found in done.items()]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = [f"{name}: left out, {why}." for name, why in left_out.items()]
    return "\n\n".join([f"## {case.title}", table, *notes])


def _row(case: Case, name: str, found: list[Turn], ours: list[Turn]) -> list[str]:
    rate = median(turn.rate for turn in found)
    peak = max(turn.peak for turn in found)
    cells = [name, f"{rate:,.0f}", _mfu(case, rate), f"{peak / GIB:.1f} GiB"]
    cells.append(_planned(case, peak) if name == OURS else "–")
    if name == OURS:
        return [*cells, "–", "–"]
    pairs = zip(ours, found, strict=True)
    ratios = [mine.rate / theirs.rate for mine, theirs in pairs]
    cells.append(f"**{median(ratios):.2f}x** ({min(ratios):.2f}–{max(ratios):.2f})")
    goal = case.goals.get(name)
    met = "" if goal is None else "met" if median(ratios) >= goal else "missed"
    return [*cells, f"{goal}x, {met}" if goal else "–"]


def _mfu(case: Case, rate: float) -> str:
    peak, shape = peak_flops(torch.cuda.get_device_name()), case.plan().shape
    if peak is None or shape is None:
        return "unknown"
    return f"{rate * mfu_flops_per_token(shape, case.attended, case.config().adapter) / peak:.1%}"


def _planned(case: Case, peak: int) -> str:
    planned = case.plan().allocated
    return "–" if planned is None else f"{planned / GIB:.1f} GiB ({planned / peak - 1:+.1%})"


if __name__ == "__main__":
    sys.exit(main())
