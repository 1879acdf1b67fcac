"""ROS 2 bags as demonstrations: one bag an episode, topics sampled at a steady rate.

A step is a moment of the recording: it has the newest message of every topic at or before it, by
the time that the recorder received it. Later messages are never used, and nothing is interpolated.
A step without a message of the last half second is left out. Joints may come in several messages:
each has its newest position, and the oldest of them counts as the age of all.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workloads import missing_files
from workloads.data.robot import images
from workloads.data.robot.episode import Dataset, Episode, usual_sizes
from workloads.data.robot.instructions import distinct, instruction_of
from workloads.data.robot.lru import LruCache
from workloads.data.robot.optional import imported
from workloads.data.robot.options import Options
from workloads.data.robot.rosbag import messages
from workloads.data.tfrecord import Damage, DamagedRecord
from workloads.errors import UserError

RATE = 10.0
STATE_TOPIC = "/joint_states"
_OLD = 0.5  # seconds after which a message is too old for a step
_BAGS_OPEN = 4
_NANOSECONDS = 1e-9
_MOST_SPARSE = 1000  # steps for each message of the most frequent topic
_PACKED = "/compressed"


@dataclass(frozen=True)
class BagRecording:
    """One bag at the moments of its steps; images by camera as the time of each step's message."""

    folder: Path
    rows: np.ndarray  # int64 [T], number of the moment
    times: np.ndarray  # float64 [T], seconds from the first moment
    states: np.ndarray
    actions: np.ndarray
    cameras: dict[str, str]  # name → topic
    stamps: dict[str, np.ndarray]  # name → int64 [T], nanoseconds
    texts: list[str]
    which: np.ndarray | None
    moments: int
    not_finite: int  # moments with a value that is no number


@dataclass
class _Stream:
    """What came on a topic: times, when the oldest part of each value was sent, and values."""

    times: list[int] = field(default_factory=list)
    oldest: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, time: int, oldest: int, value: Any) -> None:
        self.times.append(time)
        self.oldest.append(oldest)
        self.values.append(value)


class Rosbags(Dataset):
    """Vectors are read at opening, images on access: convert a bag before a long training."""

    format = "rosbag"

    def __init__(self, path: Path, options: Options, folders: Sequence[Path]) -> None:
        super().__init__(path, options)
        self.fps: float | None = options.rate or RATE
        self.name = path.resolve().name
        self.bags = Bags()
        self.found: list[BagRecording] = []
        # The joints of each topic in the order of the first bag: others may list them otherwise.
        self.joints: dict[str, tuple[str, ...]] = {}
        lost: list[Damage] = []
        for folder in folders:
            try:
                self.found.append(self._read(folder))
            except _Unusable as error:
                lost.append(Damage(str(folder), 0, None, str(error)))
            except UserError:
                raise
            except Exception as error:  # rosbags' own, sqlite3's, struct's, numpy's
                cause = f"bad_file: a message cannot be read, {' '.join(str(error).split())}"
                lost.append(Damage(str(folder), 0, None, cause))
        if self.state_names == messages.CRANE_X7:
            self.name = "crane_x7"
        self._weigh(lost)
        if not self.options.action_keys:
            self.note(
                "actions: the state of the next step, as no topic was named with action_keys; the "
                "last step of a bag has none and is left out"
            )
        self.report([])

    def __len__(self) -> int:
        return len(self.found)

    def episode(self, number: int) -> Episode:
        recording = self.found[number]
        return Episode(
            name=recording.folder.name,
            states=recording.states,
            actions=recording.actions,
            said=instruction_of(recording.texts, recording.which, self.options),
            cameras=tuple(recording.cameras),
            rows=recording.rows,
            reader=_Images(self, recording),
            file=str(recording.folder),
            timestamps=recording.times,
        )

    def _read(self, folder: Path) -> BagRecording:
        reader = self.bags.get(folder)
        topics = {connection.topic: connection.msgtype for connection in reader.connections}
        states = self._topics(folder, topics, self.options.state_keys or (STATE_TOPIC,), "state")
        actions = self._topics(folder, topics, self.options.action_keys, "action")
        cameras = self._cameras(reader, topics)
        said = self._text_topic(folder, topics)
        used = {*states, *actions, *cameras.values(), *([said] if said else [])}
        for topic, kind in topics.items():
            if topic not in used:
                self.unused.setdefault(topic, kind)
        for topic in (*states, *actions):
            if topics[topic] == messages.JOINTS and not self.joints.get(topic):
                self.joints[topic] = self._usual_joints(reader, topic)
        streams = self._streams(reader, topics, used, {*states, *actions}, said)
        return self._sampled(folder, states, actions, cameras, said, streams)

    def _topics(
        self, folder: Path, topics: dict[str, str], wanted: Sequence[str], what: str
    ) -> list[str]:
        for topic in wanted:
            if topics.get(topic) not in messages.VECTORS:
                usable = [name for name, kind in topics.items() if kind in messages.VECTORS]
                found = f"{topics[topic]} on it" if topic in topics else "no such topic"
                raise UserError(
                    f"{folder}: expected a vector on {topic} for {what}_keys, found {found}; "
                    f"topics with vectors: {', '.join(usable) or 'none'}"
                )
        return list(wanted)

    def _cameras(self, reader: Any, topics: dict[str, str]) -> dict[str, str]:
        """Colour cameras, named by their topics without their common ending."""
        found: list[str] = []
        for connection in reader.connections:
            if connection.msgtype not in (messages.IMAGE, messages.COMPRESSED):
                continue
            first = next(iter(reader.messages([connection])), None)
            if first is None:
                continue
            message = reader.deserialize(first[2], connection.msgtype)
            reason = messages.no_colour(connection.msgtype, message)
            if reason is not None:
                self.unused[connection.topic] = f"no colour camera: {reason}"
                continue
            found.append(connection.topic)
        once = [topic for topic in found if topic.removesuffix(_PACKED) not in {*found} - {topic}]
        for topic in {*found} - {*once}:
            self.unused[topic] = f"the images of {topic.removesuffix(_PACKED)} once more"
        return dict(sorted(images.camera_names(once, _camera_name).items()))

    def _text_topic(self, folder: Path, topics: dict[str, str]) -> str | None:
        texts = [topic for topic, kind in topics.items() if kind == messages.TEXT]
        self.text_keys = tuple(dict.fromkeys([*self.text_keys, *texts]))
        wanted = self.options.instruction_key
        if wanted is not None and wanted not in texts:
            raise UserError(
                f"{folder}: expected a {messages.TEXT} on {wanted} for instruction_key, found "
                f"none; topics with texts: {', '.join(texts) or 'none'}"
            )
        return wanted or next((topic for topic in texts if "instruction" in topic), None)

    def _usual_joints(self, reader: Any, topic: str) -> tuple[str, ...]:
        """The joints of a topic: CRANE-X7's in their own order, else as they first appear.

        Arm and gripper often send messages of their own. Joints that come too seldom to be known
        at every step are named and left out.
        """
        links = [connection for connection in reader.connections if connection.topic == topic]
        counts: Counter[str] = Counter()
        stamps: list[int] = []
        for connection, stamp, raw in reader.messages(links):
            counts.update(list(messages.positions(reader.deserialize(raw, connection.msgtype))))
            stamps.append(stamp)
        # Not the whole time: a clock may jump.
        seconds = np.minimum(np.diff(stamps) * _NANOSECONDS, _OLD).sum()
        often = tuple(name for name, count in counts.items() if count * _OLD >= seconds)
        if set(messages.CRANE_X7) <= {*often}:
            return messages.CRANE_X7
        for name in counts.keys() - {*often}:
            self.unused[f"{topic}/{name}"] = f"a joint in {counts[name]} of {len(stamps)} messages"
        return often

    def _streams(
        self,
        reader: Any,
        topics: dict[str, str],
        used: set[str],
        vectors: set[str],
        said: str | None,
    ) -> dict[str, "_Stream"]:
        """What came on every topic in use; for images the times alone."""
        streams: dict[str, _Stream] = defaultdict(_Stream)
        known: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
        wanted = [connection for connection in reader.connections if connection.topic in used]
        for connection, stamp, raw in reader.messages(wanted):
            topic, kind = connection.topic, connection.msgtype
            value, oldest = None, stamp
            if topic in vectors and kind == messages.JOINTS:
                found = messages.positions(reader.deserialize(raw, kind))
                self._name_more_joints(topic, found)
                known[topic] |= {name: (stamp, position) for name, position in found.items()}
                joints = self.joints[topic]
                if not joints or any(name not in known[topic] for name in joints):
                    continue
                oldest = min(known[topic][name][0] for name in joints)
                value = np.array([known[topic][name][1] for name in joints], np.float32)
            elif topic in vectors:
                value = messages.vector(kind, reader.deserialize(raw, kind))
                if value is None:
                    continue
            elif topic == said:
                value = reader.deserialize(raw, kind).data
            streams[topic].add(stamp, oldest, value)
        if self.options.state_keys in ((), (STATE_TOPIC,)):
            self.state_names = self.joints.get(STATE_TOPIC, self.state_names)
        action = self.options.action_keys or self.options.state_keys or (STATE_TOPIC,)
        if len(action) == 1:
            self.action_names = self.joints.get(action[0], self.action_names)
        return streams

    def _name_more_joints(self, topic: str, found: Iterable[str]) -> None:
        """Name joints that vectors do not have; CRANE-X7's are all known."""
        known = self.joints[topic]
        if known != messages.CRANE_X7:
            for name in {*found} - {*known}:
                self.unused.setdefault(f"{topic}/{name}", "a joint that the first bag lacks")

    def _sampled(
        self,
        folder: Path,
        states: list[str],
        actions: list[str],
        cameras: dict[str, str],
        said: str | None,
        streams: dict[str, "_Stream"],
    ) -> BagRecording:
        needed = [*states, *actions, *cameras.values()]
        silent = [topic for topic in needed if not streams[topic].times]
        if silent:
            joints = ", ".join(self.joints.get(silent[0], ()))
            having = f" that has all of {joints}" if joints else ""
            if not joints and silent[0] in self.joints:
                having = " with names and positions"
            raise _Unusable(f"missing_feature: no message on {silent[0]}{having}")
        start = max(streams[topic].times[0] for topic in needed)
        stop = min(streams[topic].times[-1] for topic in needed)
        if stop < start:
            first = min(needed, key=lambda topic: streams[topic].times[-1])
            last = max(needed, key=lambda topic: streams[topic].times[0])
            raise _Unusable(f"missing_feature: {first} ends before {last} begins")
        rate = self.fps or RATE
        count = int((stop - start) * _NANOSECONDS * rate + 1e-6) + 1
        if count < 2 and not actions:
            raise _Unusable("missing_feature: all messages are of one moment, which none follows")
        most = max(len(streams[topic].times) for topic in needed)
        if count > _MOST_SPARSE * most:
            raise _Unusable(
                f"bad_file: {count:,} steps at {rate:g} a second, and {most:,} messages of the "
                "most frequent topic: the clock jumped, as where recording begins before a "
                "simulation's clock, or data.rate is too high"
            )
        moments = start + np.round(np.arange(count) / rate / _NANOSECONDS).astype(np.int64)
        fresh, latest = np.ones(count, bool), {}
        for topic in needed:
            times = np.array(streams[topic].times, np.int64)
            latest[topic] = np.searchsorted(times, moments, side="right") - 1
            oldest = np.array(streams[topic].oldest, np.int64)[latest[topic]]
            fresh &= (moments - oldest) * _NANOSECONDS <= _OLD
        table = {topic: _stacked(folder, topic, streams[topic].values, latest[topic]) for topic in
                 (*states, *actions)}  # fmt: skip
        state = np.concatenate([table[topic] for topic in states], axis=1)
        if actions:
            action = np.concatenate([table[topic] for topic in actions], axis=1)
        else:
            # The next state; the last step has none.
            action, following = np.roll(state, -1, axis=0), np.roll(fresh, -1)
            fresh &= following
            fresh[-1:] = False
        finite = np.isfinite(state).all(1) & np.isfinite(action).all(1)
        not_finite = int((fresh & ~finite).sum())
        fresh &= finite
        texts, which = self._said(streams, said, moments[fresh])
        return BagRecording(
            folder, np.flatnonzero(fresh), (moments[fresh] - start) * _NANOSECONDS,
            state[fresh], action[fresh], cameras,
            {name: np.array(streams[topic].times, np.int64)[latest[topic][fresh]]
             for name, topic in cameras.items()},
            texts, which, count, not_finite,
        )  # fmt: skip

    def _said(
        self, streams: dict[str, "_Stream"], said: str | None, moments: np.ndarray
    ) -> tuple[list[str], np.ndarray | None]:
        """The newest instruction at each moment; the first one also counts before it came."""
        if said is None or not streams[said].times:
            return [], None
        texts, numbers = distinct([str(value) for value in streams[said].values])
        at = np.searchsorted(np.array(streams[said].times), moments, side="right") - 1
        return texts, numbers[np.maximum(at, 0)]

    def _weigh(self, lost: list[Damage]) -> None:
        """Count a lost bag as many steps as the others have; all sizes must agree."""
        usual = int(np.median([element.moments for element in self.found])) if self.found else 1
        self.damage += [item._replace(lost=max(usual, 1)) for item in lost]
        sizes = [(element.states.shape[1], element.actions.shape[1]) for element in self.found]
        expected = usual_sizes(
            (size, len(recording.rows)) for size, recording in zip(sizes, self.found, strict=True)
        )
        for size, recording in zip(sizes, self.found, strict=True):
            own_end = 0 if self.options.action_keys else 1
            not_finite = recording.not_finite
            missing = recording.moments - own_end - len(recording.rows) - not_finite
            if size != expected:
                cause = f"wrong_dim: states and actions of {size}, expected {expected}"
                self.damage.append(
                    Damage(str(recording.folder), 0, None, cause, len(recording.rows))
                )
                continue
            if missing > 0:
                cause = (
                    f"missing_feature: {missing} of {recording.moments} steps without a message "
                    f"of the last {_OLD} s"
                )
                self.damage.append(Damage(str(recording.folder), 0, None, cause, missing))
            if not_finite:
                cause = f"non_finite: {not_finite} of {recording.moments} steps with a value that "
                cause += "is not finite"
                self.damage.append(Damage(str(recording.folder), 0, None, cause, not_finite))
        self.found = [
            recording for recording, size in zip(self.found, sizes, strict=True) if size == expected
        ]
        self.seen = sum(element.moments for element in self.found) + sum(
            d.lost for d in self.damage
        )


def _camera_name(topic: str) -> str:
    name = topic.strip("/").removesuffix(_PACKED)
    for ending in ("/image_raw", "/image_rect_color", "/image"):
        name = name.removesuffix(ending)
    return name


class _Unusable(Exception):
    """Why a bag as a whole cannot be used."""


def _stacked(folder: Path, topic: str, values: list[Any], latest: np.ndarray) -> np.ndarray:
    sizes = {len(value) for value in values}
    if len(sizes) > 1:
        raise _Unusable(f"wrong_dim: vectors of {sorted(sizes)} on {topic}")
    return np.stack(values)[latest]


class Bags:
    """LRU cache of open bags; every process opens its own."""

    def __init__(self) -> None:
        self._open: LruCache[Path, Any] = LruCache(_BAGS_OPEN, _close)
        self._process = os.getpid()

    def get(self, folder: Path) -> Any:
        """Open a reader; raises _Unusable for errors of rosbags."""
        if self._process != os.getpid():  # a forked worker must not share file positions
            self._open, self._process = LruCache(_BAGS_OPEN, _close), os.getpid()
        return self._open.get(folder, lambda: _opened(folder))


def _opened(folder: Path) -> Any:
    highlevel = imported("rosbags.highlevel", "rosbag", str(folder))
    types = imported("rosbags.typesys", "rosbag", str(folder))
    for file in sorted(folder.iterdir()):
        if missing_files.is_pointer(file):
            raise _Unusable(f"bad_file: {file.name}: {missing_files.WHAT_TO_DO}")
    try:
        # Recordings from before ROS 2 Jazzy name their message types without defining them.
        store = types.get_typestore(types.Stores.ROS2_HUMBLE)
        reader = highlevel.AnyReader([folder], default_typestore=store)
        reader.open()
    except Exception as error:  # sqlite3's, mcap's, yaml's and its own
        raise _Unusable(f"bad_file: not a readable bag, {' '.join(str(error).split())}") from error
    return reader


def _close(reader: Any) -> None:
    reader.close()


class _Images:
    """Images of one bag."""

    def __init__(self, dataset: Rosbags, recording: BagRecording) -> None:
        self.dataset = dataset
        self.recording = recording

    def encoded(self, camera: str, row: int) -> bytes | None:
        kind, message = self._message(camera, row)
        return bytes(message.data) if kind == messages.COMPRESSED else None

    def pixels(self, camera: str, row: int) -> np.ndarray:
        kind, message = self._message(camera, row)
        try:
            return messages.pixels(kind, message)
        except images.ImageError as error:
            raise self._damaged(camera, row, f"bad_image: {error}") from error

    def depth(self, camera: str, row: int) -> np.ndarray:
        raise UserError(f"{self.recording.folder}: expected depth of {camera!r}, found none")

    def _message(self, camera: str, row: int) -> tuple[str, Any]:
        recording = self.recording
        at = int(np.searchsorted(recording.rows, row))
        stamp = int(recording.stamps[camera][at])
        try:
            reader = self.dataset.bags.get(recording.folder)
            topic = recording.cameras[camera]
            wanted = [link for link in reader.connections if link.topic == topic]
            connection, _, raw = next(iter(reader.messages(wanted, stamp, stamp + 1)))
            return connection.msgtype, reader.deserialize(raw, connection.msgtype)
        except Exception as error:  # as above
            raise self._damaged(camera, row, f"missing_feature: {error}") from error

    def _damaged(self, camera: str, row: int, cause: str) -> DamagedRecord:
        return DamagedRecord(Damage(str(self.recording.folder), row, None, f"{cause} ({camera})"))
