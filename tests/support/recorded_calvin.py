"""A recorded environment in the place of calvin_env: a process of its own, with its messages.

It plays the reference's rollout of 40 steps over and over. A task with the --solves text in its
name (default: block) is solved by its third step, others never. --strict: other actions than the
rollout's are refused. --ends-at FILE: where there is none it is written, and the process ends in a
fifth step; `always`: every time.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Alone, as calvin_env's own environment has it: nothing of the package's is imported.
sys.path.insert(0, str(ROOT / "workloads/vla/calvin"))
import simulator  # type: ignore[import-not-found]  # noqa: E402

RECORDING = ROOT / "tests/golden/calvin_eval/rollout_40.npz"


class Recorded:
    """Answers as `simulator.Calvin` does."""

    def __init__(self, strict: bool, ends_at: Path | None, solves: str) -> None:
        with np.load(RECORDING) as stored:
            self.recording = {name: stored[name] for name in stored.files}
        self.strict, self.ends_at, self.solves = strict, ends_at, solves
        self.at = 0

    def hello(self, fields, arrays):  # type: ignore[no-untyped-def]
        facts = {"renderer": "recording", "scene": simulator.SCENE, "calvin_env": None}
        return {"version": simulator.VERSION, "pybullet": None, **facts}, {}

    def reset(self, fields, arrays):  # type: ignore[no-untyped-def]
        self.at = 0
        return {}, self.seen()

    def begin(self, fields, arrays):  # type: ignore[no-untyped-def]
        self.task, self.begun = fields["name"], 0
        return {}, self.seen()

    def step(self, fields, arrays):  # type: ignore[no-untyped-def]
        if self.strict and not np.array_equal(
            arrays["action"], self.recording["actions"][self.at % 40].astype(np.float64)
        ):
            raise ValueError("expected the recorded action")
        always = self.ends_at == Path("always")
        if self.ends_at and self.begun == 4 and (always or not self.ends_at.exists()):
            if not always:
                self.ends_at.touch()
            print("a pointer of nobody", file=sys.stderr, flush=True)
            os._exit(9)
        self.at, self.begun = (self.at + 1) % 41, self.begun + 1
        return {"solved": self.solves in self.task and self.begun == 3}, self.seen()

    def seen(self):  # type: ignore[no-untyped-def]
        record = self.recording
        end = int(self.at > 20)
        images = {name: record[name][end] for name in simulator.IMAGES}
        return {**images, **{name: record[name][self.at] for name in simulator.STATES}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--ends-at", type=Path)
    parser.add_argument("--solves", default="block")
    args = parser.parse_args()
    outward = simulator.own_output()
    print("what a library prints", flush=True)
    simulator.answer(
        lambda: Recorded(args.strict, args.ends_at, args.solves), sys.stdin.buffer, outward
    )
