"""From the profile's data sets to what may be learned: episodes split, steps listed, statistics."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workloads.data.robot import Dataset, open_dataset
from workloads.data.robot.statistics import describe
from workloads.errors import UserError
from workloads.vla.config import Source, VlaConfig, VlaData
from workloads.json_files import read_json

Statistics = dict[str, dict[str, Any]]
_MAIN_CAMERA = "primary"


@dataclass(frozen=True)
class Part:
    """Some episodes of one data set; places int32 [n, 2]: episode and step of every sample."""

    dataset: Dataset
    name: str
    weight: float
    cameras: tuple[str, ...]
    episodes: tuple[int, ...]
    places: np.ndarray

    def row_id(self, place: int) -> str:
        """Where a sample comes from, for people."""
        episode, step = (int(number) for number in self.places[place])
        return f"{self.name}/{self.dataset[episode].name}:{step}"


@dataclass(frozen=True)
class Sources:
    """All data sets, opened: parts to train on and parts held out, and the numbers of both."""

    train: tuple[Part, ...]
    held_out: tuple[Part, ...]
    statistics: Statistics
    fingerprint: str
    damaged: int
    lines: tuple[str, ...] = field(default=())

    @property
    def action_dim(self) -> int:
        return len(next(iter(self.statistics.values()))["action"]["q01"])

    @property
    def proprio_dim(self) -> int:
        return len(next(iter(self.statistics.values()))["proprio"]["q01"])

    def as_dict(self) -> dict[str, Any]:
        """For the run's manifest."""
        return {
            "fingerprint": self.fingerprint,
            "train_samples": sum(len(part.places) for part in self.train),
            "held_out_samples": sum(len(part.places) for part in self.held_out),
            "train_episodes": sum(len(part.episodes) for part in self.train),
            "held_out_episodes": sum(len(part.episodes) for part in self.held_out),
            "damaged": self.damaged,
            "cameras": list(self.train[0].cameras),
        }


def open_sources(
    config: VlaConfig,
    cache: Path | None,
    progress: Callable[[], None],
    kept: Path | None = None,
) -> Sources:
    """Open every data set, split it by episode and describe its actions and states.

    kept: a run's own dataset_statistics.json, which wins where it is there, so that a resumed run
    normalises as before. Raises UserError for nothing to train on, an unknown camera, data sets
    that do not fit together, and damage past the budget.
    """
    opened = []
    for source in config.data.sources():
        progress()
        opened.append((source, _open(source, config.data, cache)))
    train: list[Part] = []
    held_out: list[Part] = []
    for source, dataset in opened:
        first, second = _split(dataset, config.data.eval_share, config.train.seed)
        cameras = _cameras(dataset, config.data.cameras)
        for parts, episodes in ((train, first), (held_out, second)):
            progress()
            parts.append(_part(source, dataset, cameras, episodes, config.chunk))
    _check_alike(train)
    statistics = _statistics(config, train, kept)
    damaged = sum(len(dataset.damage) for _, dataset in opened)
    lines = [_line(*both) for both in zip(train, held_out, strict=True)]
    held = tuple(part for part in held_out if len(part.places))
    return Sources(tuple(train), held, statistics, _fingerprint(train), damaged, tuple(lines))


def _open(source: Source, data: VlaData, cache: Path | None) -> Dataset:
    return open_dataset(
        source.source,
        data.drop_last_placeholder,
        color_order=source.color_order,
        cache_dir=None if cache is None else cache / "robot",
        instruction=source.instruction,
        damage_budget=data.max_damaged,
        split=source.split,
        state_keys=source.state_keys,
        action_keys=source.action_keys,
    )


def _split(dataset: Dataset, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Episodes to train on and held-out ones, both in order; empty episodes belong to neither."""
    usable = np.flatnonzero(dataset.lengths)
    if len(usable) == 0:
        raise UserError(f"{dataset.path}: expected at least one usable step, found none")
    count = max(1, round(share * len(usable))) if share > 0 and len(usable) > 1 else 0
    count = min(count, len(usable) - 1)
    order = np.random.default_rng([seed, len(usable)]).permutation(usable)
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())


def _cameras(dataset: Dataset, wanted: Sequence[str]) -> tuple[str, ...]:
    there = dataset.cameras
    if not there:
        raise UserError(f"{dataset.path}: expected a camera that all episodes have, found none")
    missing = [camera for camera in wanted if camera not in there]
    if missing:
        raise UserError(
            f"data.cameras: expected cameras of {dataset.path}, found {missing[0]!r}; it has "
            f"{', '.join(there)}"
        )
    return tuple(wanted) or (_MAIN_CAMERA if _MAIN_CAMERA in there else there[0],)


def _part(
    source: Source,
    dataset: Dataset,
    cameras: tuple[str, ...],
    episodes: Sequence[int],
    chunk: int,
) -> Part:
    places = [
        (number, step) for number in episodes for step in _usable_steps(dataset, number, chunk)
    ]
    return Part(
        dataset=dataset,
        name=source.name or dataset.name,
        weight=source.weight,
        cameras=cameras,
        episodes=tuple(episodes),
        places=np.array(places, np.int32).reshape(-1, 2),
    )


def _usable_steps(dataset: Dataset, number: int, chunk: int) -> list[int]:
    """Steps whose chunk of actions is known.

    At an episode's end its last action is repeated, as published; across a gap nothing is known.
    """
    if chunk == 1:
        return list(range(int(dataset.lengths[number])))
    segments = dataset[number].segments
    steps: list[int] = []
    for at, segment in enumerate(segments):
        last = at == len(segments) - 1
        steps += range(segment.start, segment.stop if last else segment.stop - chunk + 1)
    return steps


def _statistics(config: VlaConfig, parts: Sequence[Part], kept: Path | None) -> Statistics:
    """By name, over the episodes to train on; data sets of one name are described together."""
    data, names = config.data, list(dict.fromkeys(part.name for part in parts))
    file = kept if kept is not None and kept.is_file() else None
    if file is None and data.statistics is not None:
        file = Path(data.statistics)
    if file is None:
        return {name: _described(name, parts, data.action_mask) for name in names}
    table = read_json(file)
    missing = [name for name in names if name not in table]
    if missing:
        raise UserError(
            f"{file}: expected statistics of {missing[0]!r}, found those of {', '.join(table)}; "
            "set data.name, or leave out data.statistics"
        )
    episode = parts[0].dataset[parts[0].episodes[0]]
    takes_state = config.action_head.kind == "oft" and config.action_head.proprio
    for name in names:
        _check_numbers(f"{file}: {name}.action", table[name], "action", episode.actions.shape[1])
        size = episode.states.shape[1] if takes_state else None
        _check_numbers(f"{file}: {name}.proprio", table[name], "proprio", size)
    return {name: table[name] for name in names}


def _check_numbers(where: str, entry: Any, what: str, size: int | None) -> None:
    """Whether what normalising needs is there, `size` numbers each; None for any."""
    numbers = entry.get(what) if isinstance(entry, dict) else None
    for key in ("min", "max", "q01", "q99"):
        found = numbers.get(key) if isinstance(numbers, dict) else None
        if not isinstance(found, list) or (size is not None and len(found) != size):
            wanted = "a list of" if size is None else f"{size}"
            there = f"{len(found)}" if isinstance(found, list) else "none"
            raise UserError(
                f"{where}.{key}: expected {wanted} numbers, one a dimension of the data, found "
                f"{there}; name the data set's own statistics, or leave out data.statistics"
            )


def _described(name: str, parts: Sequence[Part], mask: tuple[bool, ...] | None) -> dict[str, Any]:
    mine = [part for part in parts if part.name == name]
    episodes = [part.dataset[number] for part in mine for number in part.episodes]
    sizes = {(one.actions.shape[1], one.states.shape[1]) for one in episodes}
    if len(sizes) > 1:
        raise UserError(
            f"data: expected actions and states of one size under the name {name!r}, found "
            f"{sorted(sizes)}; give the data sets names of their own"
        )
    actions = np.concatenate([one.actions for one in episodes])
    table: dict[str, Any] = {
        "action": describe(actions),
        "proprio": describe(np.concatenate([one.states for one in episodes])),
        "num_transitions": len(actions),
        "num_trajectories": len(episodes),
        "color_order": sorted({one.color_order for one in episodes}),
    }
    if mask is not None:
        if len(mask) != actions.shape[1]:
            raise UserError(
                f"data.action_mask: expected {actions.shape[1]} values, one an action dimension, "
                f"found {len(mask)}"
            )
        table["action"]["mask"] = list(mask)
    return table


def _check_alike(parts: Sequence[Part]) -> None:
    """One model has one size of actions and states, and one number of pictures."""
    shapes = {}
    for part in parts:
        first = part.dataset[part.episodes[0]]
        shape = (first.actions.shape[1], first.states.shape[1], len(part.cameras))
        shapes[shape] = str(part.dataset.path)
        if len(part.places) == 0:
            raise UserError(
                f"{part.dataset.path}: expected steps to train on, found none; its episodes are "
                "shorter than action_head.chunk"
            )
    if len(shapes) > 1:
        found = "; ".join(f"{path}: {shape}" for shape, path in shapes.items())
        raise UserError(
            "data.mixed_with: expected actions, states and cameras of one number each, found "
            f"{found}"
        )


def _fingerprint(parts: Sequence[Part]) -> str:
    """Changes with the samples, their order, and their actions."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([part.name, part.weight, part.cameras]).encode())
        digest.update(part.places.tobytes())
        for number in part.episodes:
            digest.update(part.dataset[number].actions.tobytes())
    return digest.hexdigest()


def _line(train: Part, held_out: Part) -> str:
    text = (
        f"data: {train.name} from {train.dataset.path}: {len(train.episodes):,} episodes, "
        f"{len(train.places):,} steps to train on, {len(held_out.episodes):,} episodes held out"
    )
    damage = train.dataset.damage
    if damage:
        text += f"; {len(damage)} damaged records left out, the first: {damage[0]}"
    return text
