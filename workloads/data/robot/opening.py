"""Which format a folder is in, by what lies in it."""

import os
from collections.abc import Sequence
from pathlib import Path

from workloads.data.robot.crane_x7 import recordings
from workloads.data.robot.episode import ColorOrder, Dataset, Options
from workloads.errors import UserError

LEROBOT_INFO = Path("meta/info.json")
RLDS_FEATURES = "features.json"


def open_dataset(
    path: str | os.PathLike[str],
    drop_last_placeholder: bool = True,
    *,
    color_order: ColorOrder | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    instruction: str | None = None,
    damage_budget: float | None = None,
    split: str | None = None,
    state_keys: Sequence[str] = (),
    action_keys: Sequence[str] = (),
) -> Dataset:
    """Open a folder (or a single episode file) of demonstrations, whatever its format.

    drop_last_placeholder: leave out the last step of an episode where its action is its own state.
    color_order: how pictures are stored where an episode's meta.json does not say; by default
    "bgr" for CRANE-X7 TFRecords, whose recorders exchange red and blue, and "rgb" for all else.
    cache_dir: where indices are kept; without it nothing is written anywhere.
    instruction: for episodes without one; by default "manipulate the object".
    damage_budget: damaged records tolerated, by default max(10, 0.1 %); math.inf to look at
    anything. split: for RLDS; state_keys, action_keys: for RLDS and LeRobot, whose vectors are
    joined in order. Raises UserError where nothing known is found, and past the budget.
    """
    root = Path(path)
    if not root.exists():
        raise UserError(f"expected a data set, found nothing at {root}; check the path")
    if color_order not in (None, "rgb", "bgr"):
        raise UserError(f"expected a color_order of rgb or bgr, found {color_order!r}")
    options = Options(
        drop_last_placeholder,
        color_order,
        None if cache_dir is None else Path(cache_dir),
        instruction,
        damage_budget,
        split,
        tuple(state_keys),
        tuple(action_keys),
    )
    return _opened(root, options)


def _opened(root: Path, options: Options) -> Dataset:
    # Only the reader that is needed loads its libraries: pyarrow takes half a second.
    if (root / LEROBOT_INFO).is_file():
        from workloads.data.robot.lerobot.reader import LeRobot

        _refuse(root, "LeRobot", split=options.split)
        return LeRobot(root, options)
    builder = _rlds_folder(root)
    if builder is not None:
        from workloads.data.robot.rlds.reader import Rlds

        return Rlds(builder, options)
    files = recordings.find(root)
    if files:
        keys = {"state_keys": options.state_keys, "action_keys": options.action_keys}
        _refuse(root, "CRANE-X7", split=options.split, **keys)
        return recordings.Recordings(root, options, files)
    raise UserError(
        f"expected a data set in {root}, found none: no {LEROBOT_INFO} (LeRobot), no "
        f"{RLDS_FEATURES} (RLDS), no **/episode_data.tfrecord or .npz (CRANE-X7); check the path"
    )


def _refuse(root: Path, format: str, **options: object) -> None:
    """What a format has no use for is never ignored silently."""
    given = [name for name, value in options.items() if value]
    if given:
        raise UserError(
            f"{root}: expected no {given[0]} for {format} recordings, found {options[given[0]]!r}; "
            "leave it out"
        )


def _rlds_folder(root: Path) -> Path | None:
    """The folder with features.json: the one given, or the newest version below it."""
    if not root.is_dir():
        return None
    if (root / RLDS_FEATURES).is_file():
        return root
    found = [*root.glob(f"*/{RLDS_FEATURES}"), *root.glob(f"*/*/{RLDS_FEATURES}")]
    # A data set is a folder of versions; without them it is the folder itself.
    folders = [file.parent for file in found]
    names = sorted({one.parent if _version(one) else one for one in folders})
    if len(names) > 1:
        listed = ", ".join(str(name) for name in names)
        raise UserError(f"expected one RLDS data set in {root}, found {listed}; name one of them")
    return max(folders, key=_version, default=None)


def _version(folder: Path) -> tuple[int, ...]:
    """1.0.0 as numbers; () for a folder with another name."""
    parts = folder.name.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()
