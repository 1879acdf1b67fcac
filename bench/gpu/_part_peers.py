"""The benchmarks of one GPU beside their peers: ours, each peer, ours again (A-B-A).

With more time, `python -m bench.gpu.sft --write` and its like compare losses first, take five turns
a side, and write a page each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any

from bench.gpu import _grpo_cases, _grpo_sides, _sft_cases, _sft_sides, _vla_sides, grpo, sft, vla
from bench.gpu._players import play_around, start
from bench.gpu._sft_cases import COMPILED, OURS, TRL, TRL_GROUPED, WARM
from bench.gpu._train import TINY
from bench.gpu.part import Report


def b1(report: Report) -> None:
    """Llama-1B, all weights, rows of 2048."""
    _sft(report, "full", (OURS, TRL))


def b2(report: Report) -> None:
    """Llama-1B on short rows, packed or padded."""
    _sft(report, "short", (OURS, TRL, TRL_GROUPED))


def b3(report: Report) -> None:
    """8B, LoRA."""
    _sft(report, "lora", (OURS, TRL))


def b4(report: Report) -> None:
    """OpenVLA-7B, LoRA, batch 16."""
    case = _vla_sides.CASES["batch16"]
    if not report.on_gpu:
        case = replace(case, tiny=True, batch=2)
    turn = partial(_vla_sides.take_turn, case)
    _play(report, _vla_sides.SIDES, turn, 8 if report.on_gpu else 6, vla.assert_same, True)


def b7(report: Report) -> None:
    """GRPO's loss phase of a 7B."""
    case = _grpo_cases.CASES["lora7b"]
    if not report.on_gpu:
        case = replace(case, tiny=True, rows=8, micro=4, length=120, picture=(72, 36))
    else:
        case = replace(case, rows=16)  # a step of 64 takes seven seconds on an H100
    turn = partial(_grpo_sides.take_turn, case)
    _play(report, _grpo_cases.SIDES, turn, 6, grpo.assert_same)


def _sft(report: Report, name: str, on_cpu: tuple[str, ...]) -> None:
    case = _sft_cases.CASES[name]
    if not report.on_gpu:
        case = replace(case, shape=TINY, length=64, batch=4, sides=on_cpu)
        case = replace(case, mean=16) if case.mean else case
    # Compiling takes a minute a side and is the part `compile`.
    offered = [side for side in case.sides if side != COMPILED]
    sides = [side for side in offered if not _sft_sides.missing(side)]
    turn = partial(_sft_sides.take_turn, case)
    _play(report, sides, turn, 8 if report.on_gpu else 6, sft.assert_same)


def _play(
    report: Report,
    sides: Any,
    take_turn: Callable[..., Any],
    steps: int,
    assert_same: Callable[[Mapping[str, Any]], None],
    has_workers: bool = False,
) -> None:
    """Ours, each peer, ours again; equal losses are a check, speeds and peaks are figures."""
    players = [
        start(name, partial(take_turn, name, steps), has_workers=has_workers) for name in sides
    ]

    def compare(first: Mapping[str, Any]) -> None:
        try:
            assert_same(first)
        except RuntimeError as error:  # a finding; the sides' speeds and memory are others
            report.check("all sides compute the same", False, str(error))
        else:
            report.check("all sides compute the same", True, list(first))

    turns, problems = play_around(players, compare, partial(_figures, report))
    report.check("ours has its turns", len(turns[OURS]) == 2, problems.get(OURS))
    for name, problem in problems.items():
        report.note(f"{name}: left out, {problem}")
    report.note(
        f"A-B-A: ours, each other side once, ours again; a turn is {steps} steps, of which the "
        f"first {WARM} are not timed, and ours is the mean of its two"
    )


def _figures(report: Report, turns: Mapping[str, Sequence[Any]]) -> None:
    """Note speeds and peaks so far: a part that is ended on its way keeps them."""
    rates = {name: mean(turn.rate for turn in found) for name, found in turns.items() if found}
    for name, rate in rates.items():
        report.figures[f"{name}: units/s"] = round(rate, 2)
        report.figures[f"{name}: MiB allocated"] = max(turn.peak for turn in turns[name]) >> 20
        if name != OURS and OURS in rates:
            report.figures[f"ours is faster than {name} by"] = round(rates[OURS] / rate, 3)
    if len(turns[OURS]) == 2:
        first, again = turns[OURS]
        report.figures["ours, its second turn by its first"] = round(again.rate / first.rate, 3)
    report.save({"status": "unfinished"})
