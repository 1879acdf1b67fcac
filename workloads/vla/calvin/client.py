"""Client of CALVIN's simulator: a process of another Python, a container, or a connection.

See `simulator` for the messages.
"""

import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workloads.errors import TataraError, UserError
from workloads.vla.calvin import simulator
from workloads.vla.calvin.scenes import ROBOT_OBS

COMMIT = "797142c588c21e76717268b7b430958dbd13bf48"  # of calvin_env, the one that was tried
_START, _STEP = 180.0, 60.0  # seconds for an answer: of a process that starts, and later
_END = 5.0  # seconds that a process has to end


class SimulatorEnded(TataraError):
    """The simulator's process has ended, is silent, or sent an invalid message."""


@dataclass(frozen=True)
class SimulatorFrame:
    """Observation after a step: images uint8 by camera, `static` [200, 200, 3] and `gripper`
    [84, 84, 3]; robot_obs float64 [15] and scene_obs [24]; whether the task is done."""

    images: Mapping[str, np.ndarray]
    robot_obs: np.ndarray
    scene_obs: np.ndarray
    solved: bool = False


@dataclass(frozen=True)
class SimulatorPlace:
    """Source of simulators: a command to start, or an address."""

    command: tuple[str, ...] = ()
    address: tuple[str, int] | None = None


class Simulator:
    """One simulator; a context manager. Raises SimulatorEnded where it fails, UserError where it
    refuses."""

    def __init__(self, place: SimulatorPlace, log: Path) -> None:
        """log: file for its process's output."""
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        if place.address is not None:
            try:
                self._socket = socket.create_connection(place.address, timeout=_START)
            except OSError as error:
                host, port = place.address
                raise UserError(
                    f"--env: expected simulators at {host}:{port}, found none ({error}); start them"
                ) from None
        else:
            self._socket, theirs = socket.socketpair()
            log.parent.mkdir(parents=True, exist_ok=True)
            with theirs, log.open("wb") as printed:
                self._process = subprocess.Popen(
                    place.command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=printed
                )
        self._stream = self._socket.makefile("rwb")
        try:
            self.facts, _ = self._ask("hello", timeout=_START)
        except BaseException:
            self.close()
            raise
        if self.facts.get("version") != simulator.VERSION:
            self.close()
            raise UserError(
                f"expected a simulator with messages of version {simulator.VERSION}, found "
                f"{self.facts.get('version')}; build its image again"
            )

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        for part in (self._stream, self._socket):
            with suppress(OSError):  # it may have ended already
                part.close()
        if self._process is not None:
            # A container's client hands a TERM on to what hangs inside, and nothing of a KILL.
            for end in (self._process.terminate, self._process.kill):
                try:
                    self._process.wait(_END)
                    return
                except subprocess.TimeoutExpired:
                    end()
            self._process.wait()

    def reset(self, scene_obs: np.ndarray) -> SimulatorFrame:
        """A sequence's first scene, float [24], with the robot where all sequences begin."""
        arrays = {"robot_obs": np.array(ROBOT_OBS), "scene_obs": np.asarray(scene_obs)}
        return _frame(*self._ask("reset", arrays))

    def begin(self, task: str) -> SimulatorFrame:
        """Start a task: it counts as done by comparison with the current scene."""
        return _frame(*self._ask("task", name=task))

    def step(self, action: np.ndarray) -> SimulatorFrame:
        """Simulate 1/30 s with an action, float [7]: six of the arm, gripper −1 or 1."""
        return _frame(*self._ask("step", {"action": np.asarray(action, np.float64)}))

    def _ask(
        self,
        verb: str,
        arrays: Mapping[str, np.ndarray] | None = None,
        timeout: float = _STEP,
        **fields: str,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        self._socket.settimeout(timeout)
        try:
            simulator.write_message(self._stream, {"do": verb, **fields}, arrays or {})
            found, seen = simulator.read_message(self._stream)
        except (OSError, EOFError, ValueError) as error:
            raise SimulatorEnded(
                f"expected an answer of the simulator to {verb!r}, found: "
                f"{error or 'none'}{self._last_words()}"
            ) from None
        if "error" in found:
            raise UserError(f"the simulator refused {verb!r}: {found['error']}")
        return found, seen

    def _last_words(self) -> str:
        if not self._log.is_file():
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        return f"; it said last: {said[:200]} (all of it: {self._log})"


def _frame(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> SimulatorFrame:
    shapes: Sequence[tuple[str, tuple[int, ...]]] = [
        *simulator.IMAGES.items(),
        *simulator.STATES.items(),
    ]
    for name, shape in shapes:
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise SimulatorEnded(f"expected {name} {list(shape)} of the simulator, found {found}")
    images = {name.removeprefix("rgb_"): arrays[name] for name in simulator.IMAGES}
    return SimulatorFrame(
        images, arrays["robot_obs"], arrays["scene_obs"], bool(fields.get("solved"))
    )
