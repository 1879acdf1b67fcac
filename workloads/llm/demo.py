"""Japanese on one CPU: a tiny model learns to talk, then two adapters learn a task each.

    make demo-ja [ARGS="train.seed=7"]        all three, then answers before and after
    make demo-ja ARGS=--resume resume after a stop or a kill

Settings apply to all stages. They train as local processes, with any engine or GPU here.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from workloads.engine import demo
from workloads.engine.demo import arguments, ended, newest, stage
from workloads.errors import EXIT_DONE
from workloads.processes import own_command
from workloads.run import Run

BASE = "demo-ja"
# Adapter → its profile.
ADAPTERS = {"questions": "demo-ja-questions", "summaries": "demo-ja-summaries"}
_LONGEST = 48  # characters of an answer that are shown


def main(words: Sequence[str]) -> int:
    """Run the remaining stages and print the answers; returns the exit code of a failed stage."""
    resume, settings = arguments("demo-ja", __doc__, words)
    print("1/3 dialogue: all weights, from random ones", flush=True)
    code, base = stage(BASE, newest(BASE) if resume else None, settings, is_done)
    if code != EXIT_DONE:
        return ended("demo-ja", code, saved=False)
    adapters: dict[str, Run] = {}
    over_base = [*settings, f"model.name={base.final}", "model.random_init=false"]
    for number, (name, profile) in enumerate(ADAPTERS.items(), start=2):
        print(f"\n{number}/3 {name}: a LoRA adapter on that model", flush=True)
        known = newest(profile) if resume else None
        known = known if known and starts_from(known, base) else None
        code, adapters[name] = stage(profile, known, over_base, is_done)
        if code != EXIT_DONE:
            return ended("demo-ja", code, saved=True)
    for name, run in {"dialogue": base, **adapters}.items():
        print("\n".join(answers(name, run)))
    print("\n".join(how_to_talk(base, adapters)), flush=True)
    return EXIT_DONE


def is_done(run: Run) -> bool:
    """Whether a stage is complete: its model was exported."""
    return run.final.is_dir()


def starts_from(run: Run, base: Run) -> bool:
    """Whether this adapter's base is that run's export."""
    return Path(run.config().model.name).resolve() == base.final.resolve()


def answers(name: str, run: Run) -> Iterator[str]:
    """The run's held-out questions, answered before its first step and after its last."""
    rows = [json.loads(line) for line in run.samples.read_text().splitlines()]
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    before = {row["place"]: row for row in rows if row["step"] == first}
    after = [row for row in rows if row["step"] == last]
    right = sum(row["output"] == row["answer"] for row in after)
    yield f"\n{name}: {right} of {len(after)} answers as in the rows held out   {run.path}"
    for row in after:
        yield f"  question  {row['asked']}"
        yield f"    before  {shown(before[row['place']]['output'])}"
        yield f"    after   {shown(row['output'])}"


def shown(text: str) -> str:
    """An answer in one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def how_to_talk(base: Run, adapters: dict[str, Run]) -> Iterator[str]:
    """The command to chat with all of them, ready to type."""
    held = [word for name, run in adapters.items() for word in ("--adapter", f"{name}={run.final}")]
    yield "\ntalk to it: /adapter questions, summaries or base switches; a report begins with 要約:"
    yield f"  {own_command('chat', str(base.final), *held, '--temperature', '0')}"
    yield "the report of each run has its answers too:"
    for run in (base, *adapters.values()):
        yield f"  {own_command('report', str(run.path))}"


if __name__ == "__main__":
    sys.exit(demo.run(main, sys.argv[1:]))
