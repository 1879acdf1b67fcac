"""Prepares the profile's datasets: episodes split, steps listed, statistics computed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from workloads.data.action_parts import ActionPart
from workloads.data.robot import DamagedRecord, Dataset, Options, open_dataset
from workloads.data.robot.frame_cache import FrameCache, cache_key, room_for
from workloads.data.robot.names import listed
from workloads.data.robot.review import missing_camera, missing_instruction, missing_steps, remarks
from workloads.data.robot.statistics import describe
from workloads.data.windows import WindowOptions, starts
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.config import Source, VlaConfig, VlaData
from workloads.vla.data import fit
from workloads.vla.processing import ImageProcessor
from workloads.vla.statistics import Statistics

_MAIN_CAMERA = "primary"
_INSTRUCTIONS_SHOWN = 3


@dataclass(frozen=True)
class Frames:
    """Cached frames of a dataset; starts int64 [episodes + 1]: first step of each episode."""

    cache: FrameCache
    starts: np.ndarray

    def get(
        self, camera: int, episode: int, step: int, load: Callable[[], np.ndarray]
    ) -> np.ndarray:
        """The frame of a step, uint8 [H, W, 3]; camera: its index among the used ones."""
        steps = int(self.starts[-1])
        return self.cache.get(camera * steps + int(self.starts[episode]) + step, load)


@dataclass(frozen=True)
class Part:
    """Some episodes of one dataset; places int32 [n, 2]: episode and first step of every sample."""

    dataset: Dataset
    name: str
    weight: float
    cameras: tuple[str, ...]
    episodes: tuple[int, ...]
    places: np.ndarray
    frames: "Frames | None" = None

    def row_id(self, place: int) -> str:
        """Place of a sample, for messages."""
        episode, step = (int(number) for number in self.places[place])
        return f"{self.name}/{self.dataset[episode].name}:{step}"


@dataclass(frozen=True)
class Sources:
    """All opened datasets: training and held-out parts, and statistics.

    lines: on the training data; notes: remarks on it.
    """

    train: tuple[Part, ...]
    held_out: tuple[Part, ...]
    statistics: Statistics
    fingerprint: str
    damaged: int
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def action_dim(self) -> int:
        return len(next(iter(self.statistics.values()))["action"]["q01"])

    @property
    def proprio_dim(self) -> int:
        """Numbers of a state; 0 where none was recorded."""
        proprio = next(iter(self.statistics.values())).get("proprio")
        return 0 if proprio is None else len(proprio["q01"])

    def as_dict(self) -> dict[str, Any]:
        """As plain values for the run's manifest."""
        return {
            "fingerprint": self.fingerprint,
            "train_samples": sum(len(part.places) for part in self.train),
            "held_out_samples": sum(len(part.places) for part in self.held_out),
            "train_episodes": sum(len(part.episodes) for part in self.train),
            "held_out_episodes": sum(len(part.episodes) for part in self.held_out),
            "damaged": self.damaged,
            "cameras": list(self.train[0].cameras),
            "sources": [
                {"path": str(part.dataset.path), "revision": part.dataset.revision}
                for part in self.train
            ],
        }


def open_sources(
    config: VlaConfig, cache: Path | None, progress: Callable[[], None], kept: Path | None = None
) -> Sources:
    """Open every dataset, split it by episode and describe its actions and states.

    kept: a run's own dataset_statistics.json, which wins if it exists, so that a resumed run
    normalises as before. Raises UserError for nothing to train on, an unknown camera, an episode
    without an instruction, actions out of the tokens' range, incompatible datasets, and damage past
    the budget.
    """
    lost = config.data.missing_datasets()
    if lost is not None:
        raise UserError(lost)
    opened = []
    for source in config.data.sources():
        progress()
        opened.append((source, _open(source, config.data, cache)))
    train: list[Part] = []
    held_out: list[Part] = []
    for source, dataset in opened:
        problem = missing_steps(dataset)
        if not source.skip_unlabelled:
            problem = problem or missing_instruction(dataset)
        if problem is not None:
            raise UserError(problem)
        first, second = _split(source, dataset, config.data.eval_share, config.train.seed)
        cameras = _cameras(dataset, config.data.cameras)
        for parts, episodes in ((train, first), (held_out, second)):
            progress()
            parts.append(_part(source, dataset, cameras, episodes, config))
    fit.check_alike(config, train)
    fit.check_states(config, train)
    fit.check_head(config, train)
    statistics = _statistics(config, train, kept)
    if not config.regresses:
        fit.check_tokens(train, statistics)
    damaged = sum(len(dataset.damage) for _, dataset in opened)
    lines = [line for both in zip(train, held_out, strict=True) for line in _lines(*both)]
    lines += _shares(train) if len(train) > 1 else []
    notes = [note for part in train for note in _notes(part)]
    held = tuple(part for part in held_out if len(part.places))
    lines += fit.without_evaluation(config, bool(held))
    return Sources(
        tuple(train), held, statistics, _fingerprint(train), damaged, tuple(lines), tuple(notes)
    )


def _open(source: Source, data: VlaData, cache: Path | None) -> Dataset:
    options = Options(
        drop_last_placeholder=data.drop_last_placeholder,
        color_order=source.color_order,
        cache_dir=None if cache is None else cache / "robot",
        instruction=source.instruction,
        instruction_key=source.instruction_key,
        instruction_map=source.instruction_map,
        damage_budget=data.max_damaged,
        split=source.split,
        state_keys=source.state_keys,
        action_keys=source.action_keys,
        rate=source.rate,
        revision=source.revision,
        fps=source.fps,
        camera_names=source.camera_names,
        action_parts=tuple(ActionPart(**part.model_dump()) for part in source.action_parts),
        skip_first=source.skip_first,
    )
    return open_dataset(source.source, options)


def _split(
    source: Source, dataset: Dataset, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Episodes to train on and held-out ones, both in order.

    Neither has empty episodes, or episodes that are left out for want of an instruction.
    Raises UserError where none is left.
    """
    usable = np.flatnonzero(dataset.lengths)
    if source.skip_unlabelled and dataset.origins["default"]:
        spoken = [number for number in usable if dataset[int(number)].said.origin != "default"]
        usable = np.array(spoken, np.int64)
        if not spoken:
            raise UserError(
                f"{dataset.path}: expected an episode with an instruction, found none in "
                f"{dataset.origins['default']}; set instruction_key to a feature that has one"
            )
    count = max(1, round(share * len(usable))) if share > 0 and len(usable) > 1 else 0
    count = min(count, len(usable) - 1)
    order = np.random.default_rng([seed, len(usable)]).permutation(usable)
    if dataset.shares_rows and count:
        return _split_apart(dataset, order, count)
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())


def _split_apart(dataset: Dataset, order: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """As `_split`, but episodes that share steps stay together; nothing is held out if all do."""
    spans = sorted((*dataset[int(number)].rows[[0, -1]].tolist(), int(number)) for number in order)
    groups: list[list[int]] = []
    end = -1
    for first, last, number in spans:
        if first > end:
            groups.append([])
        groups[-1].append(number)
        end = max(end, last)
    place = {number: at for at, number in enumerate(order.tolist())}
    groups.sort(key=lambda group: min(place[number] for number in group))
    held: list[int] = []
    for group in groups:
        if len(held) + len(group) <= count:
            held += group
    if not held and len(groups) > 1:
        held = min(groups, key=len)
    return sorted(set(order.tolist()) - set(held)), sorted(held)


def _cameras(dataset: Dataset, wanted: Sequence[str]) -> tuple[str, ...]:
    there, problem = dataset.cameras, missing_camera(dataset)
    if problem is not None:
        raise UserError(problem)
    odd = [name for name in wanted if name not in there or wanted.count(name) > 1]
    if odd:
        raise UserError(
            f"data.cameras: expected cameras of {dataset.path}, each once, found {odd[0]!r}"
            f"{' twice' if odd[0] in there else ''}; it has {', '.join(there)}"
        )
    return tuple(wanted) or (_MAIN_CAMERA if _MAIN_CAMERA in there else there[0],)


def _part(
    source: Source,
    dataset: Dataset,
    cameras: tuple[str, ...],
    episodes: Sequence[int],
    config: VlaConfig,
) -> Part:
    if config.action_head.is_policy_head:
        places = starts(dataset, window_options(config, cameras), episodes)
    else:
        steps = [
            (number, step)
            for number in episodes
            for step in _usable_steps(dataset, number, config.chunk)
        ]
        places = np.array(steps, np.int32).reshape(-1, 2)
    return Part(
        dataset=dataset,
        name=source.name or dataset.name,
        weight=source.weight,
        cameras=cameras,
        episodes=tuple(episodes),
        places=places,
    )


def window_options(config: VlaConfig, cameras: tuple[str, ...]) -> WindowOptions:
    """Options of a policy head's windows."""
    data = config.data
    return WindowOptions(
        window=config.window,
        chunk=config.chunk,
        stride=data.stride or 1,
        cameras=cameras,
        frames_kept=data.frames_in_memory,
    )


def _usable_steps(dataset: Dataset, number: int, chunk: int) -> list[int]:
    """Steps whose chunk of actions is known.

    At an episode's end its last action is repeated, as published; a chunk never spans a gap.
    """
    if chunk == 1:
        return list(range(int(dataset.lengths[number])))
    segments = dataset[number].segments
    steps: list[int] = []
    for at, segment in enumerate(segments):
        last = at == len(segments) - 1
        steps += range(segment.start, segment.stop if last else segment.stop - chunk + 1)
    return steps


def with_frames(
    sources: Sources, config: VlaConfig, processor: ImageProcessor, folder: Path
) -> tuple[Sources, list[str]]:
    """The sources with a cache of decoded frames in `folder`, and lines that say so.

    `data.cache_frames` decides. Raises UserError where the cache cannot be written.
    """
    if not _worth_keeping(config, sources):
        return sources, []
    height, width = processor.geometry.crop
    kept: dict[tuple[str, str], Frames] = {}
    said = []
    for part in sources.train:
        dataset, starts = part.dataset, np.cumsum([0, *part.dataset.lengths])
        count = int(starts[-1]) * len(part.cameras)
        place = folder / cache_key(dataset, part.cameras, processor.geometry)
        size = count * height * width * 3
        text = f"{part.name}: {size / (1 << 30):.1f} GiB of decoded images"
        if config.data.cache_frames is True or place.is_dir() or room_for(folder, size):
            try:
                cache = FrameCache(place, count, (height, width, 3))
            except OSError as error:
                raise UserError(
                    f"data.cache_frames: expected to keep frames in {place}, found {error}; set "
                    "TATARA_CACHE to a folder with room, or data.cache_frames=false"
                ) from error
            kept[part.name, str(dataset.path)] = Frames(cache, starts)
            said.append(f"{text} in {place}: epochs after the first read them there")
        else:
            said.append(f"{text} have no room in {folder}: every epoch decodes again")
    train, held_out = (
        tuple(replace(part, frames=kept.get((part.name, str(part.dataset.path)))) for part in parts)
        for parts in (sources.train, sources.held_out)
    )
    return replace(sources, train=train, held_out=held_out), said


def _worth_keeping(config: VlaConfig, sources: Sources) -> bool:
    """Whether the run reads frames again: whether it makes a second pass over the data."""
    if config.data.cache_frames != "auto":
        return bool(config.data.cache_frames)
    if config.train.max_steps is None:
        return config.train.epochs > 1
    samples = sum(len(part.places) for part in sources.train)
    return config.train.max_steps * config.train.per_device_batch_size > samples


def _statistics(config: VlaConfig, parts: Sequence[Part], kept: Path | None) -> Statistics:
    """Statistics by name, over the training episodes; datasets of one name are joined."""
    data, names = config.data, list(dict.fromkeys(part.name for part in parts))
    file = kept if kept is not None and kept.is_file() else None
    if file is None and data.statistics is not None:
        file = Path(data.statistics)
        if data.action_mask is not None:
            raise UserError(
                f"data.action_mask: expected none beside data.statistics, found both; {file} holds "
                "the mask of its dataset (action.mask): change it there, or leave out one"
            )
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
    takes_state = config.state_setting is not None
    for name in names:
        fit.check_numbers(f"{file}: {name}.action", table[name], "action", episode.actions.shape[1])
        size = episode.states.shape[1] if takes_state else None
        if takes_state or "proprio" in table[name]:
            fit.check_numbers(f"{file}: {name}.proprio", table[name], "proprio", size)
    return {name: table[name] for name in names}


def _described(name: str, parts: Sequence[Part], mask: tuple[bool, ...] | None) -> dict[str, Any]:
    mine = [part for part in parts if part.name == name]
    episodes = [part.dataset[number] for part in mine for number in part.episodes]
    sizes = {(episode.actions.shape[1], episode.states.shape[1]) for episode in episodes}
    if len(sizes) > 1:
        raise UserError(
            f"data: expected actions and states of one size under the name {name!r}, found "
            f"{sorted(sizes)}; give the datasets names of their own"
        )
    actions = np.concatenate([episode.actions for episode in episodes])
    table: dict[str, Any] = {
        "action": describe(actions),
        "num_transitions": len(actions),
        "num_trajectories": len(episodes),
        "color_order": sorted({episode.color_order for episode in episodes}),
    }
    if episodes[0].states.shape[1]:
        table["proprio"] = describe(np.concatenate([episode.states for episode in episodes]))
    if mask is not None:
        if len(mask) != actions.shape[1]:
            raise UserError(
                f"data.action_mask: expected {actions.shape[1]} values, one an action dimension, "
                f"found {len(mask)}"
            )
        table["action"]["mask"] = list(mask)
    return table


def _fingerprint(parts: Sequence[Part]) -> str:
    """Digest of the samples, their order, and their actions."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([part.name, part.weight, part.cameras]).encode())
        digest.update(part.places.tobytes())
        for number in part.episodes:
            digest.update(part.dataset[number].actions.tobytes())
    return digest.hexdigest()


def _lines(train: Part, held_out: Part) -> list[str]:
    """Lines on the training data: episodes, cameras, instructions, joints, rate, omissions."""
    dataset = train.dataset
    left_out = [camera for camera in dataset.cameras if camera not in train.cameras]
    cameras = f"cameras used: {', '.join(train.cameras)}"
    cameras += f" (left out: {', '.join(left_out)})" if left_out else ""
    damage = dataset.damage
    lost = f"; {sum(item.lost for item in damage)} steps lost by damage, the first: "
    return [
        f"{train.name} from {dataset.path}: {len(train.episodes):,} episodes{_short(train)}, "
        f"{len(train.places):,} steps to train on, {len(held_out.episodes):,} episodes held out"
        f"{_short(held_out)}{f'{lost}{damage[0]}' if damage else ''}",
        f"{train.name}: {cameras}; {_instructions(dataset)}",
        f"{train.name}: {_rate(dataset)}; images: {_sizes(train)}; {_vectors(train)}",
    ]


def _short(part: Part) -> str:
    """How many episodes give no sample: no run of their steps is as long as a window."""
    count = len(part.episodes) - len(np.unique(part.places[:, 0]))
    return f" ({count:,} of them shorter than data.window and left out)" if count else ""


def _rate(dataset: Dataset) -> str:
    """Steps a second, and where that is known from."""
    if dataset.fps is not None:
        return f"{dataset.fps:g} steps a second"
    if dataset.measured_fps is not None:
        return f"{dataset.measured_fps:g} steps a second by their times"
    return "steps a second unknown"


def _sizes(part: Part) -> str:
    """Width and height of each used camera's first image."""
    episode, found = part.dataset[part.episodes[0]], []
    for camera in part.cameras:
        try:
            height, width = episode.image(camera, 0).shape[:2]
            found.append(f"{camera} {width} x {height}")
        except DamagedRecord:
            found.append(f"{camera} unreadable at first")
    return ", ".join(found)


def _vectors(part: Part) -> str:
    """Names and units of actions and states."""
    dataset, episode = part.dataset, part.dataset[part.episodes[0]]
    actions = listed(dataset, "action", episode.actions.shape[1])
    states = listed(dataset, "state", episode.states.shape[1])
    return f"actions: {actions}; states: {'the same' if states == actions else states}"


def _notes(part: Part) -> list[str]:
    """Remarks on the data."""
    return [
        f"{part.name}: {remark.text}{f'; {remark.fix}' if remark.fix else ''}"
        for remark in remarks(part.dataset)
    ]


def _shares(parts: Sequence[Part]) -> list[str]:
    """Each dataset's share of an epoch."""
    samples = [part.weight * len(part.places) for part in parts]
    return [
        f"{part.name}: weight {part.weight:g} makes {count / sum(samples):.1%} of the samples"
        for part, count in zip(parts, samples, strict=True)
    ]


def _instructions(dataset: Dataset) -> str:
    """A line on instructions, and on episodes left out for want of one."""
    texts = list(
        dict.fromkeys(
            text
            for episode in dataset
            if episode.said.origin != "default"
            for text in episode.instructions
        )
    )
    shown = ", ".join(repr(text) for text in texts[:_INSTRUCTIONS_SHOWN])
    more = (
        f" and {len(texts) - _INSTRUCTIONS_SHOWN:,} more"
        if len(texts) > _INSTRUCTIONS_SHOWN
        else ""
    )
    without = dataset.origins["default"]
    left_out = f"; {without:,} episodes without one left out" if without else ""
    return f"instructions: {shown}{more}{left_out}"
