"""Datasets in a common form: actions computed from recorded vectors, common names of cameras.

What a dataset needs for that is data, see `vla/mixtures.yaml`; the few changes are functions here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from workloads.data.action_parts import ActionPart, Change
from workloads.errors import UserError

if TYPE_CHECKING:
    from workloads.data.robot.episode import Episode, ImageReader

# Commands of a gripper that opens or closes relative to its position: less is noise.
_COMMAND = 0.1
# A gripper's position that counts as open or closed; between, it is on its way.
_OPEN, _CLOSED = 0.95, 0.05


def transformed(episode: "Episode", parts: Sequence[ActionPart], skip_first: int) -> "Episode":
    """The episode without its first steps, and with actions of `parts` if there are any.

    Raises UserError where a part names a number that was not recorded.
    """
    episode = episode.take(slice(skip_first, None))
    if not parts or not len(episode):
        return episode
    columns, known = [], np.ones(len(episode), bool)
    for part in parts:
        if part.constant:
            columns.append(np.tile(np.array(part.constant, np.float32), (len(episode), 1)))
            continue
        values = _chosen(episode, part)
        for change in part.changes:
            values = CHANGES[change](values)
            if change == "moved":  # at a gap, and at the end, the next position is unknown
                known &= np.append(np.diff(episode.rows) == 1, False)
        columns.append(values)
    return replace(episode, actions=np.concatenate(columns, axis=1)).take(known)


def part_names(
    parts: Sequence[ActionPart],
    action_names: Sequence[str] | None,
    state_names: Sequence[str] | None,
) -> tuple[str, ...] | None:
    """Names of the numbers of actions of `parts`; None where one has no name."""
    found: list[str] = []
    for part in parts:
        names = action_names if part.of == "action" else state_names
        if part.constant or names is None or "euler" in part.changes:
            return None
        found += [names[number] for number in part.numbers or range(len(names))]
    return tuple(found)


def _chosen(episode: "Episode", part: ActionPart) -> np.ndarray:
    """float32 [T, n]: the numbers of a part."""
    recorded = episode.actions if part.of == "action" else episode.states
    size = recorded.shape[1]
    for number in part.numbers:
        if not -size <= number < size:
            raise UserError(
                f"{episode.file}: expected a number {number} of each {part.of} for "
                f"data.action_parts, found {part.of}s of {size}; correct its numbers, or "
                f"data.{part.of}_keys"
            )
    return recorded[:, list(part.numbers)] if part.numbers else recorded


def _absolute(values: np.ndarray) -> np.ndarray:
    """Commands (1 closes, -1 opens, others do nothing) → 1 open, 0 closed.

    Before the first command the gripper is in the state that this command ends; without commands it
    is open.
    """
    opened = np.where(values < -_COMMAND, 1, np.where(values > _COMMAND, -1, 0))
    steps = np.where(opened != 0, np.arange(len(values))[:, None], -1)
    latest = np.maximum.accumulate(steps, axis=0)
    first = np.take_along_axis(opened, np.argmax(opened != 0, axis=0)[None], 0)
    before = np.where(first == 0, 1, -first)
    states = np.where(latest < 0, before, np.take_along_axis(opened, np.maximum(latest, 0), 0))
    return (states > 0).astype(np.float32)


def _binary(values: np.ndarray) -> np.ndarray:
    """Positions from 0 (closed) to 1 (open) → 0 or 1, whichever is reached next.

    Where neither is reached before the end of the episode, the last position counts.
    """
    decided = (values > _OPEN) | (values < _CLOSED)
    after = np.where(decided, np.arange(len(values))[:, None], len(values))
    reached = np.minimum.accumulate(after[::-1], axis=0)[::-1]
    opened = np.concatenate([values > _OPEN, values[-1:]]).astype(np.float32)
    return np.take_along_axis(opened, np.minimum(reached, len(opened) - 1), 0)


def _euler(quaternions: np.ndarray) -> np.ndarray:
    """Rotations as (x, y, z, w) → angles about the fixed axes x, y and z in turn, in rad.

    With the y axis along the turned x axis (pitch ±π/2), the angle about z is 0.
    """
    if quaternions.shape[1] != 4:
        raise UserError(
            f"data.action_parts: expected the 4 numbers of a quaternion for euler, found "
            f"{quaternions.shape[1]}; correct numbers"
        )
    size = np.maximum(np.linalg.norm(quaternions, axis=1, keepdims=True), 1e-12)
    x, y, z, w = (quaternions / size).astype(np.float64).T
    sine = np.clip(2 * (w * y - x * z), -1, 1)
    upright = np.abs(sine) > 1 - 1e-6
    roll = np.where(
        upright,
        np.arctan2(np.sign(sine) * 2 * (x * y - w * z), 1 - 2 * (x * x + z * z)),
        np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y)),
    )
    yaw = np.where(upright, 0, np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
    return np.stack([roll, np.arcsin(sine), yaw], axis=1).astype(np.float32)


def _moved(values: np.ndarray) -> np.ndarray:
    """Difference of each step to the next; the last step has none, and is left out."""
    return np.diff(values, axis=0, append=values[-1:])


CHANGES: Mapping[Change, Callable[[np.ndarray], np.ndarray]] = {
    "clip": lambda values: np.clip(values, 0, 1),
    "invert": lambda values: 1 - values,
    "binary": _binary,
    "absolute": _absolute,
    "euler": _euler,
    "moved": _moved,
}


def renamed(episode: "Episode", names: Mapping[str, str]) -> "Episode":
    """The episode with renamed cameras; `names`: new name → recorded one.

    Raises UserError for a camera that was not recorded, and for two of one name.
    """
    if not len(episode):
        return episode
    old = {recorded: new for new, recorded in names.items()}
    unknown = [recorded for recorded in old if recorded not in episode.cameras]
    cameras = tuple(old.get(camera, camera) for camera in episode.cameras)
    if unknown or len(set(cameras)) < len(cameras):
        found = repr(unknown[0]) if unknown else f"two named {max(cameras, key=cameras.count)!r}"
        raise UserError(
            f"{episode.file}: expected data.camera_names to name cameras that it has, "
            f"{', '.join(episode.cameras)}, found {found}; correct them"
        )
    return replace(episode, cameras=cameras, reader=_Renamed(episode.reader, names))


class _Renamed:
    """Reads images by the new names of cameras."""

    def __init__(self, reader: "ImageReader", names: Mapping[str, str]) -> None:
        self._reader = reader
        self._names = names

    def encoded(self, camera: str, row: int) -> bytes | None:
        return self._reader.encoded(self._names.get(camera, camera), row)

    def pixels(self, camera: str, row: int) -> np.ndarray:
        return self._reader.pixels(self._names.get(camera, camera), row)

    def depth(self, camera: str, row: int) -> np.ndarray:
        return self._reader.depth(camera, row)
