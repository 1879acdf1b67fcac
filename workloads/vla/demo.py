"""The value of a memory, on one CPU: the same policy is trained with and without one.

    make demo-memory [ARGS="train.seed=7"]        both trainings, then a table
    make demo-memory ARGS=--resume resume after a stop or a kill

Settings apply to both. They train as local processes, with any engine or GPU here.
"""

import sys
from collections.abc import Sequence

from workloads.engine import demo
from workloads.engine.demo import arguments, ended, newest, stage
from workloads.errors import EXIT_DONE
from workloads.json_files import read_json
from workloads.run import Run

REMEMBERS, FORGETS = "demo-memory", "demo-memory-none"
_TASK = "recall"


def main(words: Sequence[str]) -> int:
    """Run the remaining trainings and print the table; returns the exit code of a failed one."""
    resume, settings = arguments(REMEMBERS, __doc__, words)
    runs: list[Run] = []
    for profile, text in ((REMEMBERS, "with a memory"), (FORGETS, "each frame seen alone")):
        print(f"\n{len(runs) + 1}/2 {text}", flush=True)
        code, run = stage(profile, newest(profile) if resume else None, settings, is_done)
        if code != EXIT_DONE:
            return ended(REMEMBERS, code, saved=bool(runs))
        runs.append(run)
    print(table(*runs), flush=True)
    return EXIT_DONE


def is_done(run: Run) -> bool:
    """Whether a training is complete: its policy was evaluated."""
    return (run.evaluation / f"{_TASK}.json").is_file()


def table(remembers: Run, forgets: Run) -> str:
    """Table of success on the same unseen scenes, with the path of the image."""
    own, other = (read_json(run.evaluation / f"{_TASK}.json") for run in (remembers, forgets))
    rows = {f"with a memory, {name}": score for name, score in own["scores"].items()}
    rows["without a memory"] = other["scores"]["trained"]
    lines = ["", f"{own['scenes']} unseen scenes of seed {own['seed']}".ljust(42) + "goal reached"]
    lines += [f"{name:<42}{score['success']:>12.0%}" for name, score in rows.items()]
    lines += [
        f"image: {remembers.evaluation / f'{_TASK}.png'}",
        f"report: tatara report {remembers.path}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(demo.run(main, sys.argv[1:]))
