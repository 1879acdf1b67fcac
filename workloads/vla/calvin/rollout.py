"""One sequence in the simulator: its tasks one after another until one of them fails."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from workloads.errors import UserError
from workloads.vla.calvin.client import Simulator, SimulatorFrame
from workloads.vla.calvin.sequences import Sequence
from workloads.vla.calvin.tasks import TASKS
from workloads.vla.episodes import Execution, PolicyEpisode, act
from workloads.vla.policy import Observation, Policy

STEPS = 360  # steps of a task, 12 s
CAMERAS = ("static", "gripper")
ACTION, STATE = 7, 15


class Pilot(Protocol):
    """Controls the robot: a policy, or a script."""

    def begin(self, task: str) -> None:
        """Begin a task: forget the one before."""

    def act(self, frame: SimulatorFrame) -> np.ndarray:
        """The action for an observation, float64 [7]: six of the arm, gripper −1 or 1."""


@dataclass
class PolicyPilot:
    """A policy with the task's instruction and its own cameras. lock: of the policy, if several
    pilots share it."""

    policy: Policy
    unnorm_key: str
    execution: Execution = Execution()
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, task: str) -> None:
        self._episode = PolicyEpisode(self.policy.new_memory())
        self._instruction = TASKS[task].instruction

    def act(self, frame: SimulatorFrame) -> np.ndarray:
        state = None if self.policy.state_size is None else frame.robot_obs
        seen = Observation(frame.images, self._instruction, state)
        with self.lock:
            sent = act(self.policy, [self._episode], [seen], self.unnorm_key, self.execution)[0]
        # The simulator accepts only an open or a closed gripper.
        sent[-1] = 1.0 if sent[-1] > 0 else -1.0
        return sent


def check_policy(policy: Policy, unnorm_key: str | None) -> str:
    """The key of the statistics for the units of the policy's actions.

    Raises UserError for an unknown key, and for a policy of another robot or other cameras.
    """
    keys = policy.unnorm_keys
    if unnorm_key is None and len(keys) != 1:
        raise UserError(
            f"--unnorm-key: expected one of {', '.join(keys)}, found none; say which data counts"
        )
    key = keys[0] if unnorm_key is None else unnorm_key
    if key not in keys:
        raise UserError(
            f"--unnorm-key: expected one of {', '.join(keys)}, found {key!r}; give one of them"
        )
    others = [camera for camera in policy.cameras if camera not in CAMERAS]
    if others:
        raise UserError(
            f"expected a policy of the cameras {' and '.join(CAMERAS)}, found {', '.join(others)}; "
            "train one on CALVIN's data"
        )
    if policy.action_shape[-1] != ACTION or policy.state_size not in (None, STATE):
        raise UserError(
            f"expected actions of {ACTION} numbers and a state of {STATE} or none, found "
            f"{policy.action_shape[-1]} and {policy.state_size}; train one on CALVIN's data"
        )
    return key


@dataclass
class SequenceRollout:
    """tasks solved before the first failure; steps of every task that was begun; the static
    camera's images [200, 200, 3], where they are kept."""

    solved: int = 0
    steps: list[int] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)


def drive(
    simulator: Simulator,
    sequence: Sequence,
    pilot: Pilot,
    keep_images: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> SequenceRollout:
    """One sequence by CALVIN's protocol.

    The scene is set up once, each task has 360 steps, and the first failure ends the sequence.
    """
    found = SequenceRollout()
    simulator.reset(sequence.scene_obs)
    for task in sequence.sequence:
        frame = simulator.begin(task)
        pilot.begin(task)
        found.steps.append(0)
        while not frame.solved and found.steps[-1] < STEPS:
            if keep_images:
                found.images.append(frame.images["static"])
            frame = simulator.step(pilot.act(frame))
            found.steps[-1] += 1
            progress()
        if keep_images:
            found.images.append(frame.images["static"])
        if not frame.solved:
            break
        found.solved += 1
    return found
