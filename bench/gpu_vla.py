"""How fast does one GPU fine-tune OpenVLA-7B, and in how much memory (B4)? Beside the recipe that
its authors published, written again as a plain loop.

    python -m bench.gpu_vla                      # both batch sizes; exit 2 without a CUDA GPU
    python -m bench.gpu_vla --cases batch16
    python -m bench.gpu_vla --write              # and writes docs/benchmarks/gpu-vla.md

Weights are random, the demonstrations are pictures of a camera's size as CRANE-X7 writes them, and
both sides decode, resize and vary the same ones. Each side lives in a process of its own and takes
its turn while the other rests. Losses are compared before anything is timed.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from statistics import median

import torch

from bench._pair import facts, write_page
from bench._players import GIB, play, start
from bench._vla_sides import CASES, OURS, PUBLISHED, SIDES, WARM, Case, Turn, take_turn

TOLERANCE = 5e-3


def main() -> int:
    options = _options()
    if not torch.cuda.is_available():
        print(
            "bench.gpu_vla: expected a CUDA GPU that torch can use, found none; run it on a "
            "machine with one (80 GiB for batch16, 141 GiB for batch32)",
            file=sys.stderr,
        )
        return 2
    parts = [run_case(CASES[name], options) for name in options.cases]
    known = facts(
        ["torch", "transformers", "peft"],
        ["workloads/vla", "workloads/engine", "bench/gpu_vla.py", "bench/_vla_sides.py"],
        torch.cuda.get_device_name(),
    )
    print(known)
    if options.write:
        print(f"wrote {write_page('gpu-vla', [*_introduction(options), *parts, known])}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16, help=f"in a turn; {WARM} warm up")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/gpu-vla.md")
    return parser.parse_args()


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
        "Run it: `python -m bench.gpu_vla --write`.",
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
    lines = [heads, ["---"] * len(heads)]
    lines += [_row(case, name, found, done[OURS]) for name, found in done.items()]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = [f"{name}: left out, {why}." for name, why in problems.items()]
    if PUBLISHED in done:
        share = _peak(done[OURS]) / _peak(done[PUBLISHED])
        met = "met" if share <= case.peak_goal else "missed"
        notes.append(
            f"Our peak is {share:.2f} of the recipe's; the goal is {case.peak_goal}, {met}."
        )
    return "\n\n".join([f"## {case.title}", table, *notes])


def _peak(found: list[Turn]) -> int:
    return max(turn.peak for turn in found)


def _row(case: Case, name: str, found: list[Turn], ours: list[Turn]) -> list[str]:
    rate = median(turn.rate for turn in found)
    cells = [name, f"{rate:.1f}", f"{_peak(found) / GIB:.1f} GiB"]
    if name == OURS:
        met = "met" if rate >= case.samples_goal else "missed"
        return [*cells, _planned(case, _peak(found)), "–", f"{case.samples_goal:.0f}/s, {met}"]
    ratios = [mine.rate / theirs.rate for mine, theirs in zip(ours, found, strict=True)]
    met = "met" if median(ratios) >= case.goal else "missed"
    faster = f"**{median(ratios):.2f}x** ({min(ratios):.2f}–{max(ratios):.2f})"
    return [*cells, "–", faster, f"{case.goal}x, {met}"]


def _planned(case: Case, peak: int) -> str:
    planned = case.plan().allocated
    return "–" if planned is None else f"{planned / GIB:.1f} GiB ({planned / peak - 1:+.1%})"


if __name__ == "__main__":
    sys.exit(main())
