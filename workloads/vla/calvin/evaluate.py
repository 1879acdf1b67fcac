"""Evaluates many sequences with several simulators; results are stored one by one, so that a
stopped evaluation resumes."""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from workloads.errors import UserError
from workloads.json_files import read_json, read_json_lines
from workloads.vla.calvin.client import Simulator, SimulatorEnded, SimulatorPlace
from workloads.vla.calvin.rollout import Pilot, SequenceRollout, drive
from workloads.vla.calvin.sequences import Sequence, sequences
from workloads.vla.calvin.video import write_video

RESULTS, FACTS = "sequences.jsonl", "evaluation.json"


@dataclass(frozen=True)
class SequenceResult:
    """One sequence: its number among the 1000, its tasks, how many were solved before the first
    failure, and the steps of each that was begun."""

    number: int
    tasks: tuple[str, ...]
    solved: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class VideoOptions:
    """The first so many sequences are filmed, as `gif` or `mp4`."""

    count: int = 0
    kind: str = "gif"


class _Stopped(Exception):
    """Another simulator failed, or a stop was requested."""


def evaluate(
    count: int,
    place: SimulatorPlace,
    new_pilot: Callable[[], Pilot],
    folder: Path,
    facts: Mapping[str, Any],
    processes: int = 1,
    videos: VideoOptions = VideoOptions(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[SequenceResult], dict[str, Any]]:
    """Evaluate the first `count` official sequences; returns results in order and the facts.

    facts: that the results depend on; earlier results in `folder` count if they have the same facts
    and simulator. new_pilot: makes one for each simulator. Raises UserError where other results lie
    there, SimulatorEnded where a simulator ends twice in a sequence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sequences(count)
    stop = threading.Event()
    with ExitStack() as opened:
        first = _Worker(place, folder / "simulator-0.log", new_pilot(), stop)
        opened.callback(first.close)
        own_facts = {**facts, "simulator": first.start().facts}
        known = _known(folder, own_facts, count)
        progress(len(known), count)
        left = [number for number in range(count) if number not in known]
        free: SimpleQueue[_Worker] = SimpleQueue()
        free.put(first)
        for number in range(1, min(processes, len(left))):
            worker = _Worker(place, folder / f"simulator-{number}.log", new_pilot(), stop)
            opened.callback(worker.close)
            free.put(worker)

        def drive_one(number: int) -> SequenceResult:
            worker = free.get()
            try:
                rollout = worker.drive(wanted[number], number < videos.count)
            finally:
                free.put(worker)
            if rollout.images:
                write_video(rollout, wanted[number], folder / f"sequence-{number:04d}", videos.kind)
            return SequenceResult(
                number, wanted[number].sequence, rollout.solved, tuple(rollout.steps)
            )

        pool = opened.enter_context(ThreadPoolExecutor(max(1, processes)))
        opened.callback(pool.shutdown, cancel_futures=True)
        opened.callback(stop.set)
        for done in as_completed([pool.submit(drive_one, number) for number in left]):
            result = done.result()
            with (folder / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            known[result.number] = result
            progress(len(known), count)
    return [known[number] for number in range(count)], own_facts


class _Worker:
    """A simulator with its robot's pilot; the simulator is started on first use."""

    def __init__(
        self, place: SimulatorPlace, log: Path, pilot: Pilot, stop: threading.Event
    ) -> None:
        self._place, self._log, self._pilot, self._stop = place, log, pilot, stop
        self._simulator: Simulator | None = None

    def start(self) -> Simulator:
        if self._simulator is None:
            self._simulator = Simulator(self._place, self._log)
        return self._simulator

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def drive(self, sequence: Sequence, films: bool) -> SequenceRollout:
        """Drive a sequence; a simulator that ends meanwhile is restarted once with it."""
        try:
            return drive(self.start(), sequence, self._pilot, films, self._check_stop)
        except SimulatorEnded:
            self.close()
            return drive(self.start(), sequence, self._pilot, films, self._check_stop)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped


def _known(folder: Path, facts: Mapping[str, Any], count: int) -> dict[int, SequenceResult]:
    """Earlier results in the folder; writes the facts if there are none yet."""
    file = folder / RESULTS
    if not file.is_file():
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return {}
    before = read_json(folder / FACTS)
    other = [name for name in {**before, **facts} if before.get(name) != facts.get(name)]
    if other:
        raise UserError(
            f"{folder}: expected results of this evaluation, found those of another "
            f"({other[0]}: {before.get(other[0])}, now {facts.get(other[0])}); remove them, or "
            "give another --output"
        )
    text = file.read_text(encoding="utf-8")
    if not text.endswith("\n"):  # a line that was cut by a kill
        file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    rows = [
        SequenceResult(row["number"], tuple(row["tasks"]), row["solved"], tuple(row["steps"]))
        for row in read_json_lines(file)
    ]
    return {row.number: row for row in rows if row.number < count}
