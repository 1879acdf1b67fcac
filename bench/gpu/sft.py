"""How fast does one GPU fine-tune, and in how much memory? Beside TRL, TRL + Liger, a bare loop.

    python -m bench.gpu.sft                    # all cases; exit 2 where there is no CUDA GPU
    python -m bench.gpu.sft --cases full lora  # some of them
    python -m bench.gpu.sft --write            # and writes docs/benchmarks/gpu-sft.md

full   Llama-1B, all weights, rows of 2048, 16k tokens a step, fp32 master weights (B1)
short  the same model on rows of 400 tokens on average, packed or padded; real tokens count (B2)
lora   8B, LoRA r16 on q, k, v, o, 2 rows of 4096 a step (B3)

Weights are random and rows are random tokens, the same on all sides. Each side lives in a process
of its own, since kernels patch classes for good, and takes its turn when the others rest; what a
turn held is given back after it. Losses are compared before anything is timed. The sides
themselves are in bench/gpu/_sft_sides.py.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial

import torch

from bench.gpu._page import Benchmark, faster, met, peak, planned, rate, section
from bench.gpu._players import play, start
from bench.gpu._sft_cases import CASES, OURS, WARM, Case
from bench.gpu._sft_sides import Turn, missing, take_turn
from workloads.device import GIB
from workloads.plan.cards import peak_flops
from workloads.plan.speed import mfu_flops_per_token

# Learning rates are as good as nothing, so that every row has the same loss whenever it comes.
TOLERANCE = 2e-3


BENCHMARK = Benchmark(
    name="sft",
    about=__doc__,
    card="80 GiB for all cases",
    cases=CASES,
    steps=16,
    warm=WARM,
    packages=("torch", "transformers", "trl", "peft"),
    sources=("workloads/llm", "bench/gpu/_sft_sides.py"),
)


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
        "Run it: `python -m bench.gpu.sft --write`.",
    ]


def run_case(case: Case, options: argparse.Namespace) -> str:
    """All sides of a case in turns; its part of the page."""
    left_out = {name: why for name in case.sides if (why := missing(name))}
    sides = [name for name in case.sides if name not in left_out]
    players = [start(name, partial(take_turn, case, name, options.steps)) for name in sides]
    turns, problems = play(players, options.rounds, assert_same)
    left_out |= problems
    done = {name: found for name, found in turns.items() if found and name not in left_out}
    heads = ["side", "tokens/s", "MFU", "peak", "planned", "ours is faster by (range)", "goal"]
    rows = [_row(case, name, found, done[OURS]) for name, found in done.items()]
    text = section(case.title, heads, rows, left_out)
    print(text, flush=True)
    return text


def assert_same(first: Mapping[str, Turn]) -> None:
    """The loss over all labelled tokens of a turn is the same, however they were put together."""
    if OURS not in first:
        raise RuntimeError(f"ours has no first turn, others have: {', '.join(first)}")
    ours = first[OURS].loss
    for name, turn in first.items():
        if abs(turn.loss / ours - 1) > TOLERANCE:
            raise RuntimeError(f"{name} has a loss of {turn.loss:.5f}, ours {ours:.5f}")


def _row(case: Case, name: str, found: list[Turn], ours: list[Turn]) -> list[str]:
    cells = [name, f"{rate(found):,.0f}", _mfu(case, rate(found)), f"{peak(found) / GIB:.1f} GiB"]
    if name == OURS:
        return [*cells, planned(case, peak(found)), "–", "–"]
    middle, text = faster(ours, found)
    goal = case.goals.get(name)
    return [*cells, "–", text, f"{goal}x, {met(middle >= goal)}" if goal else "–"]


def _mfu(case: Case, speed: float) -> str:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    most, shape = peak_flops(card), case.plan().shape
    if most is None or shape is None:
        return "unknown"
    return f"{speed * mfu_flops_per_token(shape, case.attended, case.config().adapter) / most:.1%}"


if __name__ == "__main__":
    sys.exit(BENCHMARK.main(_introduction, run_case))
