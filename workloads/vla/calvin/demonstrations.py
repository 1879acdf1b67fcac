"""The script's demonstrations in CALVIN's simulator, written as CALVIN's own data is.

They train a small policy to try the whole way: recordings, training, simulator. They are no
substitute for CALVIN's play data, which people recorded.
"""

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from workloads.data.robot.calvin import annotations
from workloads.data.robot.calvin.reader import RECORDINGS, frame_file
from workloads.data.robot.converting import whole_folder
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.calvin.client import Simulator, SimulatorFrame, SimulatorPlace
from workloads.vla.calvin.rollout import STEPS
from workloads.vla.calvin.scenes import scene_of
from workloads.vla.calvin.scripted import Script
from workloads.vla.calvin.sequences import initial_states
from workloads.vla.calvin.tasks import TASKS

# Written last: a folder with it is whole, and says how it was made.
FACTS = "script.json"
# What the script solves.
SCRIPTED = (
    "turn_on_led", "turn_off_led", "open_drawer", "close_drawer",
    "move_slider_left", "move_slider_right",
)  # fmt: skip
_ATTEMPTS = 5
# Half of the demonstrations begin up to so far from where all sequences do (m), reached in so many
# steps, and so many more until the arm rests.
_AWAY, _PUSHES, _RESTS = np.array([0.06, 0.06, 0.04]), 5, 5
_STEP = 0.02  # m that a number of 1 moves the target pose by

Demonstration = list[tuple[SimulatorFrame, np.ndarray]]


def generate(
    folder: Path,
    episodes: int,
    seed: int,
    place: SimulatorPlace,
    processes: int,
    progress: Callable[[int, int], None],
) -> bool:
    """Write so many episodes to `folder`, whole or not at all; False where they are there already.

    The tasks take turns; each starts in one of the evaluation's initial states. Raises UserError
    where something else is there, and where the script fails a task again and again.
    """
    wanted = {"task": "calvin", "version": 1, "episodes": episodes, "seed": seed}
    if (folder / FACTS).is_file():
        found = read_json(folder / FACTS)
        if {name: found.get(name) for name in wanted} == wanted:
            return False
    logs = folder.parent / f"{folder.name}.logs"
    with whole_folder(folder) as partial:
        (partial / annotations.FILE).parent.mkdir(parents=True)
        spans, facts = _record(partial, logs, episodes, seed, place, processes, progress)
        _annotate(partial, spans, [SCRIPTED[number % len(SCRIPTED)] for number in range(episodes)])
        written = {**wanted, "frames": spans[-1][1] + 1, "simulator": facts}
        (partial / FACTS).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(logs)
    return True


def _record(
    folder: Path,
    logs: Path,
    episodes: int,
    seed: int,
    place: SimulatorPlace,
    processes: int,
    progress: Callable[[int, int], None],
) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """Write the frames of all episodes, from several simulators, in the order of their numbers.

    Returns the first and last frame of each episode, and the simulators' facts.
    """
    stop = threading.Event()
    with ExitStack() as opened:
        free: SimpleQueue[Simulator] = SimpleQueue()
        for number in range(min(processes, episodes)):
            simulator = opened.enter_context(Simulator(place, logs / f"simulator-{number}.log"))
            free.put(simulator)

        def demonstrate(number: int) -> Demonstration:
            simulator = free.get()
            try:
                return _demonstration(simulator, number, seed, stop)
            finally:
                free.put(simulator)

        pool = opened.enter_context(ThreadPoolExecutor(processes))
        opened.callback(pool.shutdown, cancel_futures=True)
        opened.callback(stop.set)
        spans: list[tuple[int, int]] = []
        for rows in pool.map(demonstrate, range(episodes)):
            first = spans[-1][1] + 1 if spans else 0
            for at, (frame, action) in enumerate(rows):
                _write(folder / frame_file(first + at), frame, action)
            spans.append((first, first + len(rows) - 1))
            progress(len(spans), episodes)
        return spans, simulator.facts


def _demonstration(
    simulator: Simulator, number: int, seed: int, stop: threading.Event
) -> Demonstration:
    """Frames and actions until the task is done; the last frame's action is to rest."""
    task = SCRIPTED[number % len(SCRIPTED)]
    states = [state for state in initial_states() if TASKS[task].after(state) is not None]
    for attempt in range(_ATTEMPTS):
        random = np.random.default_rng([seed, number, attempt])
        simulator.reset(scene_of(states[random.integers(len(states))]))
        frame = simulator.begin(task)
        if random.random() < 0.5:
            _push(simulator, random.uniform(-_AWAY, _AWAY))
            frame = simulator.begin(task)
        script = Script()
        script.begin(task)
        rows: Demonstration = []
        while not frame.solved and len(rows) < STEPS:
            if stop.is_set():
                raise CancelledError
            action = script.act(frame)
            rows.append((frame, action))
            frame = simulator.step(action)
        if frame.solved:
            return [*rows, (frame, _rest())]
    raise UserError(
        f"{task}: expected the script to solve it in one of {_ATTEMPTS} scenes, found none; see "
        "whether `tatara eval calvin --scripted` does"
    )


def _push(simulator: Simulator, away: np.ndarray) -> None:
    """Move the arm by `away`, float64 [3] in m, and let it come to rest."""
    push = _rest()
    push[:3] = away / _STEP / _PUSHES
    for action in [push] * _PUSHES + [_rest()] * _RESTS:
        simulator.step(action)


def _rest() -> np.ndarray:
    """The arm stays, the gripper is closed, as the script has it: float64 [7]."""
    return np.array([0.0] * 6 + [-1.0])


def _write(file: Path, frame: SimulatorFrame, action: np.ndarray) -> None:
    arrays: Mapping[str, Any] = {
        "rgb_static": frame.images["static"],
        "rgb_gripper": frame.images["gripper"],
        "robot_obs": frame.robot_obs,
        "scene_obs": frame.scene_obs,
        "rel_actions": action,
    }
    np.savez_compressed(file, **arrays)


def _annotate(folder: Path, spans: list[tuple[int, int]], tasks: list[str]) -> None:
    """Which frames are one recording, and what each of them shows."""
    indices = np.array(spans, np.int64)
    np.save(folder / RECORDINGS, indices)
    texts = [TASKS[task].instruction for task in tasks]
    content = {
        "language": {"ann": texts, "task": tasks},
        "info": {"episodes": [], "indx": [tuple(span) for span in spans]},
    }
    np.save(folder / annotations.FILE, np.array(content, dtype=object), allow_pickle=True)
