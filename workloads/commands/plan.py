"""Predict what PROFILE needs: memory of a GPU and a node, disk, time and money."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.commands.common import loaded_environment, print_json, resolved
from workloads.device import GIB
from workloads.errors import EXIT_DONE, EXIT_FAILED, UserError

if TYPE_CHECKING:
    from workloads.config.sections import Profile
    from workloads.plan.cards import Card
    from workloads.plan.earlier import EarlierRun
    from workloads.plan.estimate import Breakdown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profile", metavar="PROFILE", help="file, or name of one in profiles/")
    parser.add_argument("--gpu", metavar="NAME", help="card to plan for, such as rtx-4090")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of each node to plan for")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", help="of the GPU to plan for")
    parser.add_argument("--rows", type=int, metavar="N", help="training rows, for time and money")
    parser.add_argument(
        "--row-tokens", type=int, metavar="N", help="mean tokens of a row, to weigh packing"
    )
    parser.add_argument("--price", type=float, metavar="DOLLARS", help="of one GPU for an hour")
    parser.add_argument(
        "--suggest", action="store_true", help="what fits the card, fastest first, as settings"
    )
    parser.add_argument(
        "--exact", action="store_true", help="one step on fake tensors instead of formulas"
    )
    parser.add_argument("--png", metavar="FILE", help="draw the memory of a step by moment")
    parser.add_argument("--json", action="store_true", help="print bytes as JSON")


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Ends with 1 where the plan does not fit the GPU that is here or was named."""
    from workloads.plan.advice import advice
    from workloads.plan.earlier import earlier_runs, overhead_of
    from workloads.plan.estimate import estimate, fits, verdict
    from workloads.plan.table import table
    from workloads.run import outputs

    env = loaded_environment()
    config, _ = resolved(args.profile, env, words)
    target = _Target(args, env)
    runs = earlier_runs(outputs(env))
    breakdown = estimate(config, target.gpus, env)
    learnt = overhead_of(target.card, runs)
    if learnt is not None:
        breakdown = breakdown.with_overhead(learnt)
    if args.suggest:
        return _suggest(args, config, breakdown, target, runs, env)
    size = target.memory
    suffices = fits(breakdown, size) if size else None
    fixes = advice(breakdown, config, size) if size and not suffices else []
    times = _times(args, config, breakdown, target, runs, env)
    exact = _exact(config, breakdown, env) if args.exact else None
    if args.png:
        from workloads.plan.drawing import draw

        draw(breakdown, Path(args.png))
    notes = _unused_gpus(args, breakdown)
    if target.card and not target.card.has_bf16 and config.train.precision == "bf16":
        notes.append(f"no bf16 on a {target.card.name}; set train.precision=fp16")
    if args.json:
        facts: dict[str, Any] = {"total": breakdown.total, "parts": breakdown.parts}
        facts |= {
            "disk": breakdown.disk,
            "allocated": breakdown.allocated,
            "reserved": breakdown.reserved,
        }
        facts |= {"unknown": breakdown.unknown, "fits": suffices, "advice": fixes}
        facts["notes"] = [*breakdown.notes, *notes]
        print_json({**facts, "time": times.facts if times else None, "exact": exact})
    else:
        table(breakdown, size)
        for note in notes:
            print(f"note: {note}")
        for line in exact["lines"] if exact else []:
            print(line)
        if size:
            print(f"it {verdict(breakdown, size)}")
        elif breakdown.shape is not None:
            print("no GPU is here to compare with; name one: --gpu rtx-4090, or --gpu-memory 24")
        for line in times.lines if times else _untimed(breakdown, target):
            print(line)
        if fixes:
            print("settings that need less:")
        for fix in fixes:
            print(f"  {fix}")
    return EXIT_FAILED if suffices is False else EXIT_DONE


class _Target:
    """The GPUs to plan for: those named, else those that are here; UserError for a bad number."""

    def __init__(self, args: argparse.Namespace, env: Mapping[str, str]) -> None:
        from workloads import device
        from workloads.plan.cards import card_for_plan, find_card

        numbers = {"gpus": args.gpus, "rows": args.rows, "row-tokens": args.row_tokens}
        numbers |= {"price": args.price, "gpu-memory": args.gpu_memory}
        for name, value in numbers.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name}: expected a number over 0, found {value:g}")
        here = device.gpus(env)
        # A size alone says nothing about the card, whatever card is here.
        self.name = here[0].name if here and not args.gpu_memory else ""
        self.card: Card | None = find_card(self.name)
        self.memory: int | None = min((gpu.total for gpu in here), default=None)
        self.gpus: int | None = len(here) or None
        if args.gpu:
            self.card, self.memory = card_for_plan(args.gpu)
            self.gpus = args.gpus or 1
        self.gpus = args.gpus or self.gpus
        if args.gpu_memory:
            self.memory = int(args.gpu_memory * GIB)


def _unused_gpus(args: argparse.Namespace, breakdown: "Breakdown") -> list[str]:
    """A note where the profile's own number of GPUs wins over --gpus."""
    if not args.gpus or breakdown.shape is None or breakdown.ranks_per_node == args.gpus:
        return []
    return [
        f"planned for {breakdown.ranks_per_node} GPUs of each node, as the profile sets, not for "
        f"{args.gpus}; add parallel.ranks_per_node={args.gpus}"
    ]


class _Times:
    def __init__(self, facts: dict[str, Any], lines: list[str]) -> None:
        self.facts, self.lines = facts, lines


def _times(
    args: argparse.Namespace,
    config: "Profile",
    breakdown: "Breakdown",
    target: _Target,
    runs: "Sequence[EarlierRun]",
    env: Mapping[str, str],
) -> _Times | None:
    """Hours and money on the target's card; None where the card or the shape is unknown."""
    from workloads.plan import duration
    from workloads.plan.earlier import rows_of
    from workloads.plan.speed import speed_of

    shape, card = breakdown.shape, target.card
    if shape is None or card is None:
        return None
    world = breakdown.world_size
    earlier = rows_of(config, runs)
    rows = args.rows or (earlier[0] if earlier else None)
    speed = speed_of(config, shape, card, world, _own(runs, env))
    seen = config.seen_shape(shape)
    found = duration.duration_of(config, config.row_length(seen), world, speed, rows)
    lines = duration.lines(found, args.price, world)
    if config.generates:
        lines.append("writing completions comes on top of that, and is not counted")
    if earlier and not args.rows:
        lines.append(f"{rows:,} rows, as {earlier[1]} counted them")
    expected, least, most = found.seconds
    facts = {"rows": rows, "steps": found.steps, "tokens": found.tokens, "source": found.source}
    facts |= {"seconds": expected, "seconds_least": least, "seconds_most": most}
    return _Times(facts, lines)


def _untimed(breakdown: "Breakdown", target: _Target) -> list[str]:
    """Why there is no time, where a GPU is known by its memory alone."""
    if breakdown.shape is None or not target.memory:
        return []
    which = f"{target.name} is not in the table of cards" if target.name else "no card is named"
    return [f"how long it takes is not known, because {which}; --gpu NAME takes one of the table"]


def _own(runs: "Sequence[EarlierRun]", env: Mapping[str, str]) -> list[Any]:
    return [seen for run in runs if (seen := run.utilisation(env)) is not None]


def _exact(config: "Profile", breakdown: "Breakdown", env: dict[str, str]) -> dict[str, Any]:
    """What the step on fake tensors says, from a process of its own, which loads torch."""
    import json
    import subprocess
    import sys
    import tempfile

    from workloads.plan.known_shapes import fields_of

    fields, _ = fields_of(config.model, env)
    job = {"config": config.model_dump(), "fields": dict(fields), "world": breakdown.world_size}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        call = [sys.executable, "-m", "workloads.engine.fake_step", str(file)]
        done = subprocess.run(call, capture_output=True, text=True, env=env)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"--exact: the step could not be made: {last}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    allocated, formulas = facts["allocated"], breakdown.allocated or 0
    facts["lines"] = [
        f"one step on fake tensors: {allocated / GIB:.2f} GiB allocated, in the {facts['phase']} "
        f"pass ({facts['operation']}); {facts['reserved'] / GIB:.2f} reserved with expandable "
        f"segments, {facts['reserved_in_blocks'] / GIB:.2f} without",
        f"the formulas say {formulas / GIB:.2f} GiB: {formulas / allocated - 1:+.1%}",
    ]
    if beside := facts["beside"]:
        facts["lines"].append(
            f"{beside / GIB:+.2f} GiB of it are by the formulas: DeepSpeed's buckets, and what "
            f"{breakdown.strategy} gathers and shards, since DeepSpeed needs real tensors"
        )
    train = config.train
    for name, is_set in {
        "compile": train.compile, "activation_offloading": train.activation_offloading
    }.items():  # fmt: skip
        if is_set:
            facts["lines"].append(f"the step is without train.{name}, which the formulas count")
    return facts


def _suggest(
    args: argparse.Namespace,
    config: "Profile",
    breakdown: "Breakdown",
    target: _Target,
    runs: "Sequence[EarlierRun]",
    env: Mapping[str, str],
) -> int:
    """Print what fits, fastest first; ends with 1 where nothing does."""
    from workloads.plan.earlier import lengths_of
    from workloads.plan.row_lengths import RowLengths
    from workloads.plan.suggest import fastest_by_method, suggestion_lines, suggestions

    if args.exact or args.png:
        other = "--exact" if args.exact else "--png"
        raise UserError(f"{other}: it is of one plan, and --suggest weighs many; leave one out")
    if breakdown.shape is None:
        raise UserError(breakdown.unknown or "memory cannot be predicted")
    if target.card is None or target.memory is None:
        raise UserError("--suggest: expected a GPU here or one that is named; add --gpu rtx-4090")
    gpus = target.gpus or 1
    own = _own(runs, env)
    lengths = lengths_of(config, runs)
    if args.row_tokens:
        longest = config.row_length(config.seen_shape(breakdown.shape))
        lengths = RowLengths(args.row_tokens, longest)
    found = suggestions(config, breakdown.shape, target.card, target.memory, gpus, own, lengths)
    kept = fastest_by_method(found)
    notes = _unused_gpus(args, breakdown)
    if config.packs is False and lengths is None:
        notes.append(
            "how long the rows are is not known here, so packing was not weighed; "
            "give --row-tokens N, or plan again after a run"
        )
    hour = args.price * breakdown.world_size if args.price else None
    if args.json:
        print_json({"suggestions": [each.facts for each in kept], "notes": notes})
    else:
        for line in suggestion_lines(kept, target.memory, hour):
            print(line)
        for note in notes:
            print(f"note: {note}")
    return EXIT_DONE if found else EXIT_FAILED
