"""Both stages on one CPU: a tiny model learns how to answer, then by rewards alone to count.

    make demo-grpo [ARGS="train.seed=7"]        both stages, then a table
    make demo-grpo ARGS=--resume                go on where it was stopped or killed

Settings go to both stages. Trained as local processes, whatever engine or GPU there is.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workloads.errors import EXIT_DONE, EXIT_STOPPED, STOPS, UserError
from workloads.grpo.evaluate.scores import AFTER, BEFORE, BLANK, scores_of
from workloads.run import Run, find, new_id, outputs
from workloads.signals import handled_by, held_back, interruptible

TAUGHT, REWARDED = "demo-grpo-sft", "demo-grpo"
_MAIN = "accuracy_extracted"
_SHOWN = (_MAIN, "format")


def main(words: Sequence[str]) -> int:
    """Run the stages that are left, print the table; the exit code of a stage that did not end."""
    parser = argparse.ArgumentParser(prog="make demo-grpo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--resume", action="store_true", help="go on with the newest demo")
    args, settings = parser.parse_known_args(words)
    if wrong := [word for word in settings if "=" not in word]:
        print(f"tatara: expected settings as name=value, found {wrong[0]!r}", file=sys.stderr)
        return UserError.exit_code
    taught = newest(TAUGHT) if args.resume else None
    rewarded = newest(REWARDED) if args.resume else None
    print("1/2 supervised: the form of an answer", flush=True)
    code, taught = stage(TAUGHT, taught, settings)
    if code == EXIT_DONE:
        print("\n2/2 GRPO: counting, by rewards alone", flush=True)
        own = rewarded if rewarded and starts_from(rewarded, taught) else None
        code, rewarded = stage(REWARDED, own, [*settings, f"model.name={taught.final}"])
        if code in STOPS:
            code = EXIT_STOPPED  # what the first stage has exported is saved
        if code == EXIT_DONE:
            print(table(taught, rewarded), flush=True)
    if code == EXIT_STOPPED:
        print("go on with: make demo-grpo ARGS=--resume", flush=True)
    return code


def newest(profile: str) -> Run | None:
    """The newest run of a profile, if there is one."""
    try:
        return find(outputs(os.environ), profile, "latest")
    except UserError:
        return None


def starts_from(run: Run, taught: Run) -> bool:
    """Whether this run took up what that one exported."""
    return Path(run.config().model.name).resolve() == taught.final.resolve()


def stage(profile: str, known: Run | None, settings: Sequence[str]) -> tuple[int, Run]:
    """Train a profile to its end, or go on with a known run of it; the exit code and the run."""
    if known is not None and scores_of(known, AFTER):
        print(f"done before: {known.path}", flush=True)
        return EXIT_DONE, known
    run = known or Run(outputs(os.environ) / profile / new_id())
    command = [sys.executable, "-m", "workloads.cli", "train", f"profiles/{profile}.yaml"]
    command += [*settings, *(["--resume", run.id] if known else [])]
    # So small a model gains nothing by a second thread, and loses much where others compute too.
    env = {"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": "", "RUN_ID": run.id}
    # A stop is passed on to the training, which saves; its exit code then says so. As SIGTERM: of a
    # Ctrl-C the terminal tells it too, and two of those would mean now.
    with (
        held_back(),
        subprocess.Popen(command, env=env) as process,
        handled_by(lambda *_: process.terminate()),
    ):
        return process.wait(), run


def table(taught: Run, rewarded: Run) -> str:
    """What was earned on the same held-out scenes at each stage, in the rewards' means."""
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
        name.ljust(32) + "".join(f"{scores[one]:>20.3f}" for one in _SHOWN) for name, scores in rows
    ]
    rise = trained[_MAIN] - max(formed[_MAIN], constant[_MAIN])
    lines += [
        f"GRPO's rise over the better of both: {rise:+.3f}",
        f"curve: {rewarded.path}/rewards.png",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(interruptible(lambda: main(sys.argv[1:])))
