"""What the benchmarks on a GPU have in common: their options, their page, figures of a turn."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch

from bench._pair import facts, write_page
from workloads.device import GIB
from workloads.plan.estimate import Breakdown


class Turn(Protocol):
    """What a side's turn must tell: units a second, and the most bytes that were allocated."""

    @property
    def rate(self) -> float: ...
    @property
    def peak(self) -> int: ...


class Case(Protocol):
    """What a case must tell: what `tatara plan` says of ours."""

    def plan(self) -> Breakdown: ...


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: `name` is its module's, `card` which GPU it wants, `steps` those of a turn."""

    name: str
    about: str | None
    card: str
    cases: Mapping[str, Any]
    steps: int
    warm: int
    packages: Sequence[str]
    sources: Sequence[str]

    def main(
        self,
        introduction: Callable[[argparse.Namespace], list[str]],
        run_case: Callable[[Any, argparse.Namespace], str],
    ) -> int:
        """Run the cases that are asked for and print, or write, the page; 2 without a GPU."""
        options = self._options()
        if not torch.cuda.is_available():
            print(
                f"bench.gpu.{self.name}: expected a CUDA GPU that torch can use, found none; "
                f"run it on a machine with one ({self.card})",
                file=sys.stderr,
            )
            return 2
        parts = [run_case(self.cases[name], options) for name in options.cases]
        sources = [*self.sources, f"bench/gpu/{self.name}.py", "workloads/engine"]
        known = facts(self.packages, sources, torch.cuda.get_device_name())
        print(known)
        if options.write:
            print(f"wrote {write_page(self.page, [*introduction(options), *parts, known])}")
        return 0

    @property
    def page(self) -> str:
        return f"gpu-{self.name}"

    def _options(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        names = list(self.cases)
        parser.add_argument("--cases", nargs="+", choices=names, default=names)
        parser.add_argument("--rounds", type=int, default=5)
        steps = f"in a turn; {self.warm} warm up"
        parser.add_argument("--steps", type=int, default=self.steps, help=steps)
        page = f"write docs/benchmarks/{self.page}.md"
        parser.add_argument("--write", action="store_true", help=page)
        return parser.parse_args()


def section(
    title: str,
    heads: list[str],
    rows: Sequence[list[str]],
    left_out: Mapping[str, str],
    *notes: str,
) -> str:
    """A case's part of the page: a table, who is left out and why, what else there is to say."""
    lines = [heads, ["---"] * len(heads), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    told = [f"{name}: left out, {why}." for name, why in left_out.items()]
    return "\n\n".join([f"## {title}", table, *told, *notes])


def rate(found: Sequence[Turn]) -> float:
    """The median over a side's turns."""
    return median(turn.rate for turn in found)


def peak(found: Sequence[Turn]) -> int:
    """The highest of a side's turns, in bytes."""
    return max(turn.peak for turn in found)


def faster(ours: Sequence[Turn], theirs: Sequence[Turn]) -> tuple[float, str]:
    """How many times as fast ours is, turn by turn: the median, and in words with its range."""
    ratios = [own.rate / other.rate for own, other in zip(ours, theirs, strict=True)]
    middle = median(ratios)
    return middle, f"**{middle:.2f}x** ({min(ratios):.2f}–{max(ratios):.2f})"


def met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def planned(case: Case, measured: int) -> str:
    """What `tatara plan` says, and how far from what was measured that is."""
    bytes_planned = case.plan().allocated
    if bytes_planned is None:
        return "–"
    return f"{bytes_planned / GIB:.1f} GiB ({bytes_planned / measured - 1:+.1%})"
