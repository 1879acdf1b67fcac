"""How a dataset of demonstrations is opened; the same options whatever its format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from workloads.data.action_parts import ActionPart

ColorOrder = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Options:
    """How a dataset is opened; a format refuses what it has no use for.

    drop_last_placeholder: leave out the last step of an episode where its action is its own state.
    color_order: how images are stored where an episode's meta.json does not say; by default "bgr"
    for CRANE-X7 TFRecords, whose recorders exchange red and blue, and "rgb" for all else.
    cache_dir: where indices are kept; without it nothing is written anywhere.
    instruction: for episodes without one; by default "manipulate the object", which is counted and
    reported. instruction_key: the feature that holds instructions; instruction_map: recorded text,
    or
    a number as text, to the one that counts.
    damage_budget: damaged records tolerated, by default max(10, 0.1 %); math.inf for any.
    split: for RLDS. state_keys, action_keys: vectors joined in order, for all but CRANE-X7; for a
    ROS 2 bag they are topics, sampled `rate` times a second.
    revision: of a dataset on the hub. fps: steps a second, where the files do not say.
    camera_names: another name for a camera → the recorded one. action_parts: parts of an action; ()
    for actions as recorded. skip_first: steps at the start of each episode to leave out.
    """

    drop_last_placeholder: bool = True
    color_order: ColorOrder | None = None
    cache_dir: Path | None = None
    instruction: str | None = None
    instruction_key: str | None = None
    instruction_map: Mapping[str, str] = field(default_factory=dict)
    damage_budget: float | None = None
    split: str | None = None
    state_keys: tuple[str, ...] = ()
    action_keys: tuple[str, ...] = ()
    rate: float | None = None
    revision: str | None = None
    fps: float | None = None
    camera_names: Mapping[str, str] = field(default_factory=dict)
    action_parts: tuple[ActionPart, ...] = ()
    skip_first: int = 0
