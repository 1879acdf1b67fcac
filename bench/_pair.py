"""Ours beside its peers: one process, turn by turn, equal outputs first.

    sides = [Side("ours", run_ours), Side("peer", run_peer)]
    timed = measure(sides, check=assert_same)
    print(table(timed, work=rows, unit="rows/s"))

The first side is ours. Every side runs once unmeasured; `check` gets the outputs and must raise
where they differ in what matters. Then all sides take turns, so that a busy minute of the machine
hits all of them, and ratios are taken within a turn. A side on a GPU synchronises by itself.
"""

import argparse
import gc
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def benchmark_parser(
    page: str, description: str | None, rounds: int = 5
) -> argparse.ArgumentParser:
    """The options of every benchmark; `page` is the one that --write writes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--machine", default="2 cores x86-64", help="words for the page")
    parser.add_argument("--write", action="store_true", help=f"write docs/benchmarks/{page}.md")
    return parser


@dataclass(frozen=True)
class Side:
    name: str
    run: Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """Seconds of every turn by the side's name; the first side is ours."""

    seconds: dict[str, list[float]]

    @property
    def ours(self) -> str:
        return next(iter(self.seconds))

    def ratios(self, peer: str) -> list[float]:
        """How many times as long as ours the peer took, turn by turn."""
        turns = zip(self.seconds[self.ours], self.seconds[peer], strict=True)
        return [theirs / ours for ours, theirs in turns]


def measure(
    sides: Sequence[Side], check: Callable[[Sequence[Any]], None], rounds: int = 5
) -> Timed:
    """Run all sides once and `check` their outputs, then time them in turns; at least 5 rounds."""
    if rounds < 5:
        raise ValueError(f"expected at least 5 rounds, found {rounds}")
    check([side.run() for side in sides])
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            gc.collect()  # nobody pays for what the side before left behind
            start = time.perf_counter()
            output = side.run()
            seconds[side.name].append(time.perf_counter() - start)
            del output
    return Timed(seconds)


def table(
    timed: Timed, work: float, unit: str, extra: tuple[str, dict[str, str]] | None = None
) -> str:
    """Markdown: each side's median time and rate, and how ours compares.

    `extra` is one more column: its head and a text for each side.
    """
    heads = ["side", "median time", unit, "ours is faster by (range)"]
    lines = [heads + [extra[0]] if extra else heads]
    lines.append(["---"] * len(lines[0]))
    for name, seconds in timed.seconds.items():
        middle = median(seconds)
        cells = [name, _duration(middle), f"{work / middle:,.0f}", _ratio(timed, name)]
        lines.append(cells + [extra[1][name]] if extra else cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _ratio(timed: Timed, name: str) -> str:
    if name == timed.ours:
        return "–"
    ratios = timed.ratios(name)
    return f"**{median(ratios):.1f}x** ({min(ratios):.1f}–{max(ratios):.1f})"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def facts(packages: Sequence[str], sources: Sequence[str], machine: str) -> str:
    """One line: versions, machine and the commit that holds `sources` (paths in the tree)."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    python = f"Python {platform.python_version()}"
    return f"{', '.join([python, *versions])}; {machine}; commit {_commit(sources)}"


def _commit(sources: Sequence[str]) -> str:
    if not (ROOT / ".git").exists():  # a copy of the tree, carried to another machine
        return "unknown"
    commit = _git("log", "-1", "--format=%h", "--", *sources)
    changed = _git("status", "--porcelain", "--", *sources)
    return f"{commit} with changes" if changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_page(name: str, parts: Sequence[str]) -> Path:
    """Write docs/benchmarks/`name`.md from paragraphs and tables."""
    path = ROOT / "docs" / "benchmarks" / f"{name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path
