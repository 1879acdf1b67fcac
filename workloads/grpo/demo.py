"""Both stages on one CPU: a tiny model learns the form of answers, then to count by rewards.

    make demo-grpo [ARGS="train.seed=7"]        both stages, then a table
    make demo-grpo ARGS=--resume resume after a stop or a kill

Settings apply to both stages. They train as local processes, with any engine or GPU here.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from workloads.engine import demo
from workloads.engine.demo import arguments, ended, newest, stage
from workloads.errors import EXIT_DONE
from workloads.grpo.evaluate.scores import AFTER, BEFORE, BLANK, scores_of
from workloads.run import Run

TAUGHT, REWARDED = "demo-grpo-sft", "demo-grpo"
_MAIN = "accuracy_extracted"
_SHOWN = (_MAIN, "format")


def main(words: Sequence[str]) -> int:
    """Run the remaining stages and print the table; returns the exit code of a failed stage."""
    resume, settings = arguments("demo-grpo", __doc__, words)
    taught = newest(TAUGHT) if resume else None
    rewarded = newest(REWARDED) if resume else None
    print("1/2 supervised: the form of an answer", flush=True)
    code, taught = stage(TAUGHT, taught, settings, is_done)
    if code != EXIT_DONE:
        return ended("demo-grpo", code, saved=False)
    print("\n2/2 GRPO: counting, by rewards alone", flush=True)
    own = rewarded if rewarded and starts_from(rewarded, taught) else None
    code, rewarded = stage(REWARDED, own, [*settings, f"model.name={taught.final}"], is_done)
    if code == EXIT_DONE:
        print(table(taught, rewarded), flush=True)
    return ended("demo-grpo", code, saved=True)


def is_done(run: Run) -> bool:
    """Whether a stage is complete: its model was scored."""
    return bool(scores_of(run, AFTER))


def starts_from(run: Run, taught: Run) -> bool:
    """Whether this run started from that one's export."""
    return Path(run.config().model.name).resolve() == taught.final.resolve()


def table(taught: Run, rewarded: Run) -> str:
    """Table of mean rewards on the same held-out scenes after each stage."""
    start, formed = scores_of(taught, BEFORE), scores_of(taught, AFTER)
    trained, blank = scores_of(rewarded, AFTER), scores_of(rewarded, BLANK)
    constant = {_MAIN: trained["commonest_answer"], "format": 1.0}
    rows = [
        (f"always {trained['commonest_text']}", constant),
        ("random weights", start),
        ("after the supervised stage", formed),
        ("after GRPO", trained),
        ("after GRPO, grey images", blank),
    ]
    lines = [
        "",
        f"{trained['rows']} held-out scenes".ljust(32) + "".join(f"{n:>20}" for n in _SHOWN),
    ]
    lines += [
        name.ljust(32) + "".join(f"{scores[item]:>20.3f}" for item in _SHOWN)
        for name, scores in rows
    ]
    rise = trained[_MAIN] - max(formed[_MAIN], constant[_MAIN])
    lines += [
        f"GRPO's rise over the better of both: {rise:+.3f} (so few scenes leave "
        f"±{chance(trained[_MAIN], trained['rows']):.3f} to chance)",
        f"curve: {rewarded.path}/rewards.png",
    ]
    return "\n".join(lines)


def chance(share: float, rows: int) -> float:
    """Half the width of the interval that a share of right answers lies in, at 95 %."""
    return 1.96 * math.sqrt(share * (1 - share) / rows)


if __name__ == "__main__":
    sys.exit(demo.run(main, sys.argv[1:]))
