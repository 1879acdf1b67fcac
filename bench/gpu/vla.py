"""How fast does one GPU fine-tune OpenVLA-7B, and in how much memory (B4)? Beside the recipe that
its authors published, written again as a plain loop.

    python -m bench.gpu.vla                      # both batch sizes; exit 2 without a CUDA GPU
    python -m bench.gpu.vla --cases batch16
    python -m bench.gpu.vla --write              # and writes docs/benchmarks/gpu-vla.md

Weights are random, the demonstrations are pictures of a camera's size as CRANE-X7 writes them, and
both sides decode, resize and vary the same ones. Each side lives in a process of its own and takes
its turn while the other rests. Losses are compared before anything is timed.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial

from bench.gpu._page import Benchmark, faster, met, peak, planned, rate, section
from bench.gpu._players import play, start
from bench.gpu._vla_sides import CASES, OURS, PUBLISHED, SIDES, WARM, Case, Turn, take_turn
from workloads.device import GIB

TOLERANCE = 5e-3


BENCHMARK = Benchmark(
    name="vla",
    about=__doc__,
    card="80 GiB for batch16, 141 GiB for batch32",
    cases=CASES,
    steps=16,
    warm=WARM,
    packages=("torch", "transformers", "peft"),
    sources=("workloads/vla", "bench/gpu/_vla_sides.py"),
)


def _introduction(options: argparse.Namespace) -> list[str]:
    return [
        "# Fine-tuning OpenVLA-7B on one GPU",
        "OpenVLA's real shape with random weights, LoRA r32 on every linear layer that is used, "
        "bf16, no gradient checkpointing, pictures of 640 x 480 as JPEG in CRANE-X7's records. "
        "Ours is `workloads.vla.train.build_trainer` with `profiles/recipes/vla-published.yaml` "
        "and 8 workers. The published recipe is a loop of our own words: autocast, eager "
        "attention, logits of the whole sequence in fp32, no workers, AdamW as it comes, and "
        "loss, accuracy and L1 taken from the GPU one by one in every step.",
        f"Sides take turns, {options.rounds} times after one that compares losses; a turn is "
        f"{options.steps} steps, of which the first {WARM} are not timed. Peak is torch's own "
        "count of allocated bytes; beside ours stands what `tatara plan` says.",
        "Run it: `python -m bench.gpu.vla --write`.",
    ]


def run_case(case: Case, options: argparse.Namespace) -> str:
    """Both sides in turns; the case's part of the page."""
    players = [
        start(name, partial(take_turn, case, name, options.steps), has_workers=True)
        for name in SIDES
    ]
    text = _text(case, *play(players, options.rounds, assert_same))
    print(text, flush=True)
    return text


def assert_same(first: Mapping[str, Turn]) -> None:
    """The mean loss over the same samples is the same."""
    if OURS not in first:
        raise RuntimeError(f"ours has no first turn, others have: {', '.join(first)}")
    ours = first[OURS].loss
    for name, turn in first.items():
        if abs(turn.loss / ours - 1) > TOLERANCE:
            raise RuntimeError(f"{name} has a loss of {turn.loss:.5f}, ours {ours:.5f}")


def _text(case: Case, turns: Mapping[str, list[Turn]], problems: Mapping[str, str]) -> str:
    done = {name: found for name, found in turns.items() if found and name not in problems}
    heads = ["side", "samples/s", "peak", "planned", "ours is faster by (range)", "goal"]
    rows = [_row(case, name, found, done[OURS]) for name, found in done.items()]
    notes = []
    if PUBLISHED in done:
        share = peak(done[OURS]) / peak(done[PUBLISHED])
        goal = f"the goal is {case.peak_goal}, {met(share <= case.peak_goal)}"
        notes.append(f"Our peak is {share:.2f} of the recipe's; {goal}.")
    return section(case.title, heads, rows, problems, *notes)


def _row(case: Case, name: str, found: list[Turn], ours: list[Turn]) -> list[str]:
    cells = [name, f"{rate(found):.1f}", f"{peak(found) / GIB:.1f} GiB"]
    if name == OURS:
        goal = f"{case.samples_goal:.0f}/s, {met(rate(found) >= case.samples_goal)}"
        return [*cells, planned(case, peak(found)), "–", goal]
    middle, text = faster(ours, found)
    return [*cells, "–", text, f"{case.goal}x, {met(middle >= case.goal)}"]


if __name__ == "__main__":
    sys.exit(BENCHMARK.main(_introduction, run_case))
