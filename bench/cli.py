"""How long does a person wait for `tatara --help`, `check` and `plan`? Beside `trl --help`.

    python -m bench.cli            # prints the figures
    python -m bench.cli --write    # and writes docs/benchmarks/cli.md

Every call is a process of its own, from its start to its end, as a shell sees it. Besides the time
on the clock the processor time of the process is taken, which other work on the machine hardly
changes.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench._pair import ROOT, Side, Timed, benchmark_parser, facts, measure, write_page

GOAL = 0.5
BIN = Path(sys.executable).parent
TATARA = [sys.executable, "-m", "workloads.cli"]
DEMO = "profiles/demo.yaml"
# The words of each command, and one that its output must hold; the first two have the goal.
COMMANDS = {
    "tatara --help": ([*TATARA, "--help"], "usage: tatara"),
    "tatara check profiles/demo.yaml": ([*TATARA, "check", DEMO], "outputs"),
    "tatara plan profiles/demo.yaml": ([*TATARA, "plan", DEMO], "optimizer"),
    "trl --help": ([str(BIN / "trl"), "--help"], "usage: trl"),
    "accelerate --help": ([str(BIN / "accelerate"), "--help"], "usage: accelerate"),
}
WITH_GOAL = 2


@dataclass
class Command:
    """One command line; calling it runs it once and notes its processor time."""

    name: str
    words: Sequence[str]
    expected: str
    processor: list[float] = field(default_factory=list)

    def __call__(self) -> str:
        before = os.times()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(self.words, cwd=ROOT, env=env, capture_output=True, text=True)
        after = os.times()
        spent = after.children_user + after.children_system
        self.processor.append(spent - before.children_user - before.children_system)
        if done.returncode:
            raise RuntimeError(f"{self.name}: exit {done.returncode}\n{done.stderr}")
        return done.stdout


def main() -> None:
    arguments = benchmark_parser("cli", __doc__, rounds=9).parse_args()
    commands = [Command(name, *facts) for name, facts in COMMANDS.items()]

    def check(outputs: Sequence[Any]) -> None:
        for command, output in zip(commands, outputs, strict=True):
            assert command.expected in output, f"{command.name}: {output[:300]}"

    timed = measure([Side(item.name, item) for item in commands], check, arguments.rounds)
    text = _table(timed, commands)
    known = facts(
        ["pydantic", "trl", "accelerate"],
        ["workloads/cli.py", "workloads/config/merge.py", "workloads/check.py", "bench/cli.py"],
        arguments.machine,
    )
    print(f"{text}\n\n{known}")
    if arguments.write:
        print(f"wrote {write_page('cli', [*_introduction(arguments.rounds), text, known])}")


def _introduction(rounds: int) -> list[str]:
    return [
        "# How long commands take to answer",
        f"Each command as a process of its own, {rounds} times in turns, after one turn that warms "
        "the file cache and checks what was printed. `check` resolves the profile and looks at the "
        "outputs folder, the data, the plan and the disk; `plan` prints the memory table. Nothing "
        "of `trl` or `accelerate` does the same, so their help pages stand for how long they take "
        "to answer at all.",
        f"The goal is less than {GOAL} s for the first two on an idle machine. Processor time is "
        "what is left of it when the machine is busy.",
        "Run it: `python -m bench.cli --write`.",
    ]


def _table(timed: Timed, commands: Sequence[Command]) -> str:
    heads = ["command", "median time", "range", "processor time", "goal"]
    lines = [heads, ["---"] * len(heads)]
    for number, command in enumerate(commands):
        seconds = timed.seconds[command.name]
        middle, processor = median(seconds), median(command.processor[1:])
        lines.append(
            [
                f"`{command.name}`",
                f"{middle:.2f} s",
                f"{min(seconds):.2f}–{max(seconds):.2f}",
                f"{processor:.2f} s",
                _verdict(middle, processor) if number < WITH_GOAL else "–",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _verdict(seconds: float, processor: float) -> str:
    if seconds < GOAL:
        return "met"
    return "missed on the clock" if processor < GOAL else "missed"


if __name__ == "__main__":
    main()
