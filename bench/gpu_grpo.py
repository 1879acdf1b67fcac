"""How fast does one GPU learn from completions that are there (B7), and in how much memory? Beside
TRL's trainer as it comes, and beside the whole logits that R1-V computes.

    python -m bench.gpu_grpo            # exit 2 without a CUDA GPU
    python -m bench.gpu_grpo --write    # and writes docs/benchmarks/gpu-grpo.md

Weights are random; prompts, pictures and completions are the same on all sides. Only the training
is timed: log-probabilities, loss, gradients and the optimizer. Each side lives in a process of its
own and takes its turn while the others rest. Losses and gradient norms are compared first.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from statistics import median

import torch

from bench._gpu_cases import WARM
from bench._grpo_cases import CASES, OURS, SIDES, WHOLE, Case
from bench._grpo_sides import Turn, take_turn
from bench._pair import facts, write_page
from bench._players import GIB, play, start

# Advantages of a group cancel each other out, so that losses are near 0; norms say more.
LOSS_TOLERANCE, NORM_TOLERANCE = 2e-3, 3e-2


def main() -> int:
    options = _options()
    if not torch.cuda.is_available():
        print(
            "bench.gpu_grpo: expected a CUDA GPU that torch can use, found none; run it on a "
            "machine with one (80 GiB)",
            file=sys.stderr,
        )
        return 2
    parts = [run_case(CASES[name], options) for name in options.cases]
    known = facts(
        ["torch", "transformers", "trl", "peft"],
        ["workloads/grpo", "workloads/engine", "bench/gpu_grpo.py", "bench/_grpo_sides.py"],
        torch.cuda.get_device_name(),
    )
    print(known)
    if options.write:
        print(f"wrote {write_page('gpu-grpo', [*introduction(options.rounds), *parts, known])}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help=f"in a turn; {WARM} warm up")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/gpu-grpo.md")
    return parser.parse_args()


def introduction(rounds: int) -> list[str]:
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
        f"Sides take turns, {rounds} times after one that compares losses and gradient norms. Peak "
        "is torch's own count of allocated bytes; beside ours stands what `tatara plan` says.",
        "Run it: `python -m bench.gpu_grpo --write`.",
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
    lines = [heads, ["---"] * len(heads)]
    lines += [_row(case, name, found, done[OURS]) for name, found in done.items()]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = [f"{name}: left out, {why}." for name, why in problems.items()]
    for name in (one for one in done if one != OURS):
        share = _peak(done[OURS]) / _peak(done[name])
        met = f"; the goal is {case.peak_goal}, {'met' if share <= case.peak_goal else 'missed'}"
        notes.append(f"Our peak is {share:.2f} of that of {name}{met if name == WHOLE else ''}.")
    return "\n\n".join([f"## {case.title}", text, *notes])


def _peak(found: list[Turn]) -> int:
    return max(turn.peak for turn in found)


def _row(case: Case, name: str, found: list[Turn], ours: list[Turn]) -> list[str]:
    rate = median(turn.rate for turn in found)
    cells = [name, f"{rate:,.0f}", f"{_peak(found) / GIB:.1f} GiB"]
    if name == OURS:
        return [*cells, _planned(case, _peak(found)), "–", "–"]
    ratios = [mine.rate / theirs.rate for mine, theirs in zip(ours, found, strict=True)]
    faster = f"**{median(ratios):.2f}x** ({min(ratios):.2f}–{max(ratios):.2f})"
    met = f"{case.goal}x, {'met' if median(ratios) >= case.goal else 'missed'}"
    return [*cells, "–", faster, met if name == WHOLE else "–"]


def _planned(case: Case, peak: int) -> str:
    planned = case.plan().allocated
    return "–" if planned is None else f"{planned / GIB:.1f} GiB ({planned / peak - 1:+.1%})"


if __name__ == "__main__":
    sys.exit(main())
