"""How fast does one GPU learn from completions that are there (B7), and in how much memory? Beside
TRL's trainer as it comes, and beside the whole logits that R1-V computes.

    python -m bench.gpu.grpo            # exit 2 without a CUDA GPU
    python -m bench.gpu.grpo --write    # and writes docs/benchmarks/gpu-grpo.md

Weights are random; prompts, pictures and completions are the same on all sides. Only the training
is timed: log-probabilities, loss, gradients and the optimizer. Each side lives in a process of its
own and takes its turn while the others rest. Losses and gradient norms are compared first.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial

from bench.gpu._grpo_cases import CASES, OURS, SIDES, WHOLE, Case
from bench.gpu._grpo_sides import Turn, take_turn
from bench.gpu._page import Benchmark, faster, met, peak, planned, rate, section
from bench.gpu._players import play, start
from bench.gpu._sft_cases import WARM
from workloads.device import GIB

# Advantages of a group cancel each other out, so that losses are near 0; norms say more.
LOSS_TOLERANCE, NORM_TOLERANCE = 2e-3, 3e-2


BENCHMARK = Benchmark(
    name="grpo",
    about=__doc__,
    card="80 GiB",
    cases=CASES,
    steps=8,
    warm=WARM,
    packages=("torch", "transformers", "trl", "peft"),
    sources=("workloads/grpo", "bench/gpu/_grpo_sides.py"),
)


def introduction(options: argparse.Namespace) -> list[str]:
    """What the page begins with."""
    return [
        "# GRPO's training phase on one GPU",
        "Qwen2.5-VL-7B's real shape with random weights, LoRA r64, bf16, gradient checkpointing, "
        "64 completions of 4 to each of 16 prompts in a step, 8 at a time; a prompt, its picture "
        "of 512 tokens and a completion are 900 tokens together. Completions are given, so that "
        "nothing is generated; pictures, prompts and rewards are left out of the time.",
        "Ours is `workloads.grpo.train.build_trainer` with `profiles/grpo-h100.yaml`. It computes "
        "log-probabilities as TRL does, in tiles that never hold the logits of a whole row: ours "
        "and TRL's are expected to be as fast as each other, and any difference is the price of "
        "what a run adds (guards, heartbeat, records). The third side is TRL's trainer with R1-V's "
        "log-probabilities, from the logits of every position.",
        f"Sides take turns, {options.rounds} times after one that compares losses and gradient "
        "norms. Peak is torch's own count of allocated bytes; beside ours stands what "
        "`tatara plan` says.",
        "Run it: `python -m bench.gpu.grpo --write`.",
    ]


def run_case(case: Case, options: argparse.Namespace) -> str:
    """All sides in turns; the case's part of the page."""
    players = [start(name, partial(take_turn, case, name, options.steps)) for name in SIDES]
    text = table(case, *play(players, options.rounds, assert_same))
    print(text, flush=True)
    return text


def assert_same(first: Mapping[str, Turn]) -> None:
    """The mean loss and the mean gradient norm over the same completions are the same."""
    if OURS not in first:
        raise RuntimeError(f"ours has no first turn, others have: {', '.join(first)}")
    ours = first[OURS]
    for name, turn in first.items():
        if abs(turn.loss - ours.loss) > LOSS_TOLERANCE:
            raise RuntimeError(f"{name} has a loss of {turn.loss:.5f}, ours {ours.loss:.5f}")
        if abs(turn.grad_norm / ours.grad_norm - 1) > NORM_TOLERANCE:
            raise RuntimeError(
                f"{name} has a gradient norm of {turn.grad_norm:.5g}, ours {ours.grad_norm:.5g}"
            )


def table(case: Case, turns: Mapping[str, list[Turn]], problems: Mapping[str, str]) -> str:
    """A case's part of the page: each side's rate and peak, and how ours compares."""
    done = {name: found for name, found in turns.items() if found and name not in problems}
    heads = ["side", "tokens/s", "peak", "planned", "ours is faster by (range)", "goal"]
    rows = [_row(case, name, found, done[OURS]) for name, found in done.items()]
    notes = []
    for name in (side for side in done if side != OURS):
        share = peak(done[OURS]) / peak(done[name])
        goal = f"; the goal is {case.peak_goal}, {met(share <= case.peak_goal)}"
        notes.append(f"Our peak is {share:.2f} of that of {name}{goal if name == WHOLE else ''}.")
    return section(case.title, heads, rows, problems, *notes)


def _row(case: Case, name: str, found: list[Turn], ours: list[Turn]) -> list[str]:
    cells = [name, f"{rate(found):,.0f}", f"{peak(found) / GIB:.1f} GiB"]
    if name == OURS:
        return [*cells, planned(case, peak(found)), "–", "–"]
    middle, text = faster(ours, found)
    goal = f"{case.goal}x, {met(middle >= case.goal)}"
    return [*cells, "–", text, goal if name == WHOLE else "–"]


if __name__ == "__main__":
    sys.exit(BENCHMARK.main(introduction, run_case))
