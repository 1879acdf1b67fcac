"""Warnings about a dataset before training on it, and errors that training refuses."""

import hashlib
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from workloads.data.images import is_one_colour
from workloads.data.robot.episode import Dataset, Episode
from workloads.data.robot.images import ImageError, kind_of
from workloads.data.robot.instructions import DEFAULT_INSTRUCTION
from workloads.data.robot.names import dimension_name, joint_limits
from workloads.data.tfrecord import Damage, DamagedRecord, check_budget
from workloads.errors import UserError

# Encoders read a little beyond the limits: so much is no finding (rad).
LIMIT_TOLERANCE = 1e-3
# Below this share of the whole range, q01 to q99 cuts off real motion.
_NARROW = 0.02
# Angles count as wrapping where both ends near pi hold this share, and the middle hardly any.
_WRAP_ENDS, _WRAP_MIDDLE, _WRAP_WIDTH = 0.1, 0.05, 0.6
_MOST_NAMED = 12  # features or episodes named in one remark
# Episodes whose values are this many times as large as those of the others: degrees are 57 rad.
_OTHER_UNITS = 20
# A value this many times as far from the median as the middle 80 % are wide is far from all others.
_FAR = 100
# White space that nobody types in an instruction; U+3000 is the space of Japanese.
_ODD_SPACE = re.compile(r"^\s|\s$|[^\S \u3000]|\s{2}")


class Remark(NamedTuple):
    """A fact to know, its fix ('' for none), and whether it is a warning."""

    text: str
    fix: str = ""
    level: Literal["ok", "warning"] = "warning"


def refusal(dataset: Dataset, damage: Sequence[Damage] = ()) -> str | None:
    """Why a training with the default damage budget would refuse the dataset; None if it would not.

    damage: what reading everything has found, besides what opening did.
    """
    try:
        whole = list(dict.fromkeys([*dataset.damage, *damage]))
        check_budget(whole, dataset.seen, None)
    except UserError as error:
        return str(error)
    return missing_steps(dataset) or missing_camera(dataset) or missing_instruction(dataset)


def missing_steps(dataset: Dataset) -> str | None:
    """The sentence that refuses a dataset without a step, with the first reason for it."""
    if dataset.lengths.any():
        return None
    first = f"; {dataset.damage[0]}" if dataset.damage else ""
    return f"{dataset.path}: expected at least one usable step, found none{first}"


def missing_camera(dataset: Dataset) -> str | None:
    """The sentence that refuses a dataset without a camera that all episodes have."""
    if dataset.cameras:
        return None
    others = [f"{key} ({why})" for key, why in dataset.unused.items() if "camera" in why]
    left_out = f"; not used: {', '.join(others)}" if others else ""
    left_out += "".join(f"; {text}" for text in dataset.lost_cameras.values())
    return f"{dataset.path}: expected a camera that all episodes have, found none{left_out}"


def missing_instruction(dataset: Dataset) -> str | None:
    """The sentence that refuses episodes for which no instruction was chosen."""
    count = dataset.origins["default"]
    if not count:
        return None
    texts = [key.removeprefix("steps/") for key in dataset.text_keys]
    there = f"the files have texts in: {', '.join(texts)}" if texts else "the files have no texts"
    return (
        f"{dataset.path}: expected an instruction in every episode, found none in {count} of "
        f"{sum(dataset.origins.values())}, where {DEFAULT_INSTRUCTION!r} would stand in; set "
        f"data.instruction to a text, or data.instruction_key to a feature ({there})"
    )


def remarks(dataset: Dataset) -> list[Remark]:
    """Remarks on the data, most important first, without those of `refusal`."""
    episodes = [episode for episode in dataset if len(episode)]
    found = [Remark(note) for note in dataset.notes]
    for text in dataset.lost_cameras.values():
        fix = "remove those episodes, or record it in them, to train with it"
        found.append(Remark(f"{text}: it is not used", fix))
    empty = [number for number, steps in enumerate(dataset.lengths) if not steps]
    if empty and episodes:
        found.append(
            Remark(
                f"{len(empty)} of {len(dataset)} episodes have no usable step, the first "
                f"{dataset[empty[0]].name}: they are left out",
                level="ok",
            )
        )
    several = [episode.name for episode in episodes if episode.said.steps is not None]
    if several:
        found.append(
            Remark(
                f"{len(several)} of {len(episodes)} episodes have several instructions, the first "
                f"{several[0]}: each step is trained with its own",
                level="ok",
            )
        )
    if dataset.origins["option"]:
        count = dataset.origins["option"]
        text = f"{count} of {len(episodes)} episodes have no instruction of their own"
        found.append(Remark(f"{text}: {dataset.options.instruction!r} stands in", level="ok"))
    elif dataset.options.instruction is not None and episodes:
        text = f"all episodes have an instruction: {dataset.options.instruction!r} is not used"
        found.append(Remark(text, "data.instruction_map replaces recorded texts"))
    found += _odd_spaces(episodes)
    if not dataset.shares_rows:
        found += _copies(episodes)
    for what in ("action", "state"):
        found += _ranges(dataset, what, episodes)
        found += _other_units(what, episodes) or _far_values(dataset, what, episodes)
    found += _images(episodes)
    return [*found, *_unused(dataset)]


def _odd_spaces(episodes: Sequence[Episode]) -> list[Remark]:
    """Instructions with line breaks or superfluous spaces: whoever types them has others."""
    texts = {text: None for episode in episodes for text in episode.instructions}
    odd = [text for text in texts if _ODD_SPACE.search(text)]
    if not odd:
        return []
    text = (
        f"{len(odd)} instructions have line breaks or superfluous spaces, the first {odd[0][:80]!r}"
    )
    fix = "replace them with data.instruction_map, to ask the policy without them"
    return [Remark(f"{text}: they are trained on as recorded", fix)]


def _copies(episodes: Sequence[Episode]) -> list[Remark]:
    """Episodes with exactly the numbers of one before them."""
    first: dict[bytes, str] = {}
    copies = []
    for episode in episodes:
        if len(episode) < 2:
            continue
        digest = hashlib.sha256(episode.states.tobytes() + episode.actions.tobytes()).digest()
        if first.setdefault(digest, episode.name) != episode.name:
            copies.append((episode.name, first[digest]))
    if not copies:
        return []
    name, original = copies[0]
    text = f"{len(copies)} episodes have the states and actions of another, the first {name} those"
    return [
        Remark(
            f"{text} of {original}: they count twice, and may be held out from themselves",
            "remove the copies",
        )
    ]


def _other_units(what: str, episodes: Sequence[Episode]) -> list[Remark]:
    """Episodes whose values are much larger or smaller than the others', in most dimensions."""
    vectors = [episode.actions if what == "action" else episode.states for episode in episodes]
    if len({vector.shape[1] for vector in vectors}) != 1 or not vectors[0].shape[1]:
        return []
    largest = np.array([np.abs(vector.astype(np.float64)).max(0) for vector in vectors])
    usual = np.median(largest, axis=0)
    ratios = largest[:, usual > 0] / usual[usual > 0]
    if not ratios.size:
        return []
    sizes = np.median(ratios, axis=1)
    moving = np.flatnonzero(sizes > 0)
    order = moving[np.argsort(sizes[moving], kind="stable")]
    jumps = sizes[order[1:]] / sizes[order[:-1]]
    if not len(jumps) or jumps.max() < _OTHER_UNITS:
        return []
    at = int(jumps.argmax()) + 1
    low, high = np.sort(order[:at]), np.sort(order[at:])
    odd = high if len(high) <= len(low) else low
    factor = float(np.median(sizes[high]) / np.median(sizes[low]))
    return [
        Remark(
            f"{len(odd)} of {len(episodes)} episodes, the first {episodes[odd[0]].name}, have "
            f"{what}s about {factor:.0f} times as {'large' if odd is high else 'small'} as the "
            "others: are they in other units (degrees among radians are 57 times as large)?",
            "convert them to one unit, or remove them",
        )
    ]


def _far_values(dataset: Dataset, what: str, episodes: Sequence[Episode]) -> list[Remark]:
    """Dimensions with values far from all others, as glitches of an encoder are."""
    vectors = [episode.actions if what == "action" else episode.states for episode in episodes]
    if len({vector.shape[1] for vector in vectors}) != 1:
        return []
    values = np.concatenate(vectors).astype(np.float64)
    ends = np.cumsum([len(vector) for vector in vectors])
    found = []
    for number, column in enumerate(values.T):
        low, middle, high = np.quantile(column, [0.1, 0.5, 0.9])
        far = np.flatnonzero(np.abs(column - middle) > _FAR * (high - low))
        if high > low and len(far):
            place = int(np.searchsorted(ends, far[0], side="right"))
            episode = episodes[place]
            step = int(far[0] - ends[place]) + len(episode)
            found.append(
                Remark(
                    f"{what} {dimension_name(dataset, what, values.shape[1], number)}: {len(far)} "
                    f"values are far from all others, the first {column[far[0]]:g} at step {step} "
                    f"of {episode.name}",
                    "remove those episodes, or correct the values, where they are no motion",
                )
            )
    return found


_KINDS = {
    "deep": Remark(
        "grey images of more than 8 bits, as depth maps are: they are trained on as colours",
        "name the colour cameras with data.cameras",
    ),
    "one colour": Remark("images of one colour alone: is it covered, or dark?"),
    "stuck": Remark("the same image at the first, middle and last step: is it stuck?"),
    "turned": Remark(
        "images with an EXIF orientation, which is not applied: they are used as they are stored, "
        "as TensorFlow reads them, while LeRobot's own loader turns them",
        "save them upright, without an orientation",
    ),
    "grey": Remark("grey images: red, green and blue are the same", level="ok"),
    "transparent": Remark(
        "images with an alpha channel: they lie on white where they are transparent", level="ok"
    ),
}


def _images(episodes: Sequence[Episode]) -> list[Remark]:
    """Cameras whose images are other than plain colour, or never change, by a few episodes."""
    kinds: dict[tuple[str, str], str] = {}
    sizes: dict[str, dict[str, str]] = {}
    for number in sorted({0, len(episodes) // 2, len(episodes) - 1}) if episodes else ():
        episode = episodes[number]
        steps = sorted({0, len(episode) // 2, len(episode) - 1})
        for camera in episode.cameras:
            with suppress(DamagedRecord, ImageError):  # reported as damage
                frames = [episode.image(camera, t) for t in steps]
                size = "{1} x {0}".format(*frames[0].shape)
                sizes.setdefault(camera, {}).setdefault(size, episode.name)
                encoded = episode.encoded(camera, 0)
                kinds.setdefault((camera, kind_of(encoded) if encoded else ""), episode.name)
                if all(is_one_colour(Image.fromarray(frame)) for frame in frames):
                    kinds.setdefault((camera, "one colour"), episode.name)
                elif len(steps) > 2 and all(np.array_equal(frames[0], f) for f in frames[1:]):
                    kinds.setdefault((camera, "stuck"), episode.name)
    several = [
        Remark(
            f"camera {camera} has images of several sizes: "
            + ", ".join(f"{size} in {name}" for size, name in mine.items())
        )
        for camera, mine in sizes.items()
        if len(mine) > 1
    ]
    return several + [
        _KINDS[kind]._replace(text=f"camera {camera} has {_KINDS[kind].text} (seen in {name})")
        for (camera, kind), name in kinds.items()
        if kind in _KINDS
    ]


def _unused(dataset: Dataset) -> list[Remark]:
    if not dataset.unused:
        return []
    named = [f"{key} ({why})" for key, why in dataset.unused.items()]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return [
        Remark(f"in the files and not used: {', '.join(named[:_MOST_NAMED])}{more}", level="ok")
    ]


def _ranges(dataset: Dataset, what: str, episodes: Sequence[Episode]) -> list[Remark]:
    """Remarks on dimensions that normalising cuts off, angles that wrap, and degrees."""
    pieces = [episode.actions if what == "action" else episode.states for episode in episodes]
    if not pieces or len({piece.shape[1] for piece in pieces}) != 1 or not pieces[0].shape[1]:
        return []
    values = np.concatenate(pieces).astype(np.float64)
    size = values.shape[1]
    if what == "action" and not np.ptp(values, axis=0).any():
        return [
            Remark("actions never change: a policy learns to repeat one", "look at action_keys")
        ]
    found = _degrees(dataset, what, values)
    for number, column in enumerate(values.T):
        name = f"{what} {dimension_name(dataset, what, size, number)}"
        q01, q99 = np.quantile(column, [0.01, 0.99])
        spread = float(np.ptp(column))
        if what == "action" and spread > 0 and q99 - q01 < _NARROW * spread:
            share = float(np.mean((column < q01) | (column > q99)))
            found.append(
                Remark(
                    f"{name} hardly moves: q01 {q01:g}, q99 {q99:g}, while {share:.2%} of the "
                    f"steps lie beyond, from {column.min():g} to {column.max():g}; normalising "
                    "cuts them off, and a policy never does them",
                    f"set data.action_mask with false at dimension {number} to keep it as it is, "
                    "or train on episodes where it moves more often",
                )
            )
        if _wraps(column):
            found.append(
                Remark(
                    f"{name} jumps between -pi and pi: an angle that wraps, learned as two ends",
                    "record it relative to another direction, or as its sine and cosine",
                )
            )
    return found


def _wraps(column: np.ndarray) -> bool:
    """Whether values lie about pi and -pi and hardly between."""
    if np.abs(column).max() > math.pi + 0.01:
        return False
    high = float(np.mean(column > math.pi - _WRAP_WIDTH))
    low = float(np.mean(column < -math.pi + _WRAP_WIDTH))
    middle = float(np.mean(np.abs(column) < math.pi / 2))
    return min(high, low) > _WRAP_ENDS and middle < _WRAP_MIDDLE


def _degrees(dataset: Dataset, what: str, values: np.ndarray) -> list[Remark]:
    """A remark where values of a robot known to use rad can only be degrees."""
    limits = joint_limits(dataset, values.shape[1])
    if limits is None:
        return []
    low, high = np.array(limits).T
    beyond = (values < low - LIMIT_TOLERANCE) | (values > high + LIMIT_TOLERANCE)
    if beyond.mean() < 0.2 or np.abs(values).max() < 2 * math.pi:
        return []
    text = (
        f"{what}s: {beyond.mean():.0%} of the values are beyond the joint limits, up to "
        f"{np.abs(values).max():.1f}: are these degrees?"
    )
    return [Remark(text, "expected rad: convert them with pi / 180 when recording")]
