"""Opens a dataset; the files in its folder decide its format."""

import os
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from workloads.data.robot.crane_x7 import recordings
from workloads.data.robot.episode import Dataset
from workloads.data.robot.options import Options
from workloads.data.robot.transform import part_names
from workloads.errors import UserError
from workloads.missing_files import refuse_lost_link

LEROBOT_INFO = Path("meta/info.json")
RLDS_FEATURES = "features.json"
BAG_METADATA = "metadata.yaml"
CALVIN_ANNOTATIONS = Path("lang_annotations/auto_lang_ann.npy")
CALVIN_RECORDINGS = "ep_start_end_ids.npy"
HDF5 = (".hdf5", ".h5")
# Options of single formats: given to another format, they are refused, never ignored.
_SPECIAL = {
    "LeRobot": ("state_keys", "action_keys", "instruction_key", "revision"),
    "RLDS": ("split", "state_keys", "action_keys", "instruction_key"),
    "CALVIN": (),
    "CRANE-X7": ("instruction_key",),
    "HDF5": ("state_keys", "action_keys", "instruction_key"),
    "ROS 2 bag": ("state_keys", "action_keys", "instruction_key", "rate"),
}
_MOST_NAMED = 8  # files of a folder that an error names


def open_dataset(
    path: str | os.PathLike[str], options: Options | None = None, **changes: Any
) -> Dataset:
    """Open a folder (or a single episode file) of demonstrations, whatever its format.

    path: a folder, a file, or for LeRobot a name on the hub. changes: fields of `Options`, over
    those of `options`. Raises UserError where nothing known is found, and past the budget of
    damage.
    """
    refuse_lost_link(path)
    chosen = _complete(replace(options or Options(), **changes))
    root, revision = _local(path, chosen)
    dataset = _opened(root, chosen)
    dataset.revision = revision
    dataset.fps = dataset.fps or chosen.fps
    if chosen.fps not in (None, dataset.fps):
        dataset.note(f"fps is set to {chosen.fps:g}, the files say {dataset.fps:g}: these count")
    if chosen.action_parts:
        dataset.action_names = part_names(
            chosen.action_parts, dataset.action_names, dataset.state_names
        )
    if chosen.instruction_map:
        _check_map(dataset)
    return dataset


def _complete(options: Options) -> Options:
    """The options with paths and tuples in their declared types."""
    if options.color_order not in (None, "rgb", "bgr"):
        raise UserError(
            f"expected a color_order of rgb or bgr, found {options.color_order!r}; set one of them"
        )
    return replace(
        options,
        cache_dir=None if options.cache_dir is None else Path(options.cache_dir),
        state_keys=tuple(options.state_keys),
        action_keys=tuple(options.action_keys),
    )


def is_hub_name(source: str) -> bool:
    """Whether this can be a dataset's name on the hub: owner/name, and no such path here."""
    parts = source.split("/")
    return (
        len(parts) == 2
        and all(part and not part.startswith((".", "~")) for part in parts)
        and not Path(source).exists()
        and not Path(parts[0]).exists()
    )


def _local(path: str | os.PathLike[str], options: Options) -> tuple[Path, str | None]:
    """Local folder of a dataset, and its commit if it comes from the hub."""
    root = Path(path)
    if root.exists():
        if options.revision is not None:
            raise UserError(
                f"revision: expected a dataset's name on the hub, found the folder {root} here; "
                "leave it out"
            )
        return root, None
    if is_hub_name(os.fspath(path)):
        from workloads.data.robot.lerobot.hub import download

        folder = download(os.fspath(path), options.revision, LEROBOT_INFO)
        return folder, folder.name
    raise UserError(f"expected a dataset, found nothing at {root}; check the path")


def _opened(root: Path, options: Options) -> Dataset:
    # Only the reader that is needed loads its libraries: pyarrow takes half a second.
    if (root / LEROBOT_INFO).is_file():
        from workloads.data.robot.lerobot.reader import LeRobot

        _refuse(root, "LeRobot", options)
        return LeRobot(root, options)
    builder = _rlds_folder(root)
    if builder is not None:
        from workloads.data.robot.rlds.reader import Rlds

        _refuse(root, "RLDS", options)
        return Rlds(builder, options)
    split = _calvin_split(root)
    if split is not None:
        from workloads.data.robot.calvin.reader import Calvin

        _refuse(root, "CALVIN", options)
        return Calvin(split, options)
    files = recordings.find(root)
    if files:
        _refuse(root, "CRANE-X7", options)
        return recordings.Recordings(root, options, files)
    files = _below(root, HDF5)
    if files:
        from workloads.data.robot.hdf5.reader import Hdf5

        _refuse(root, "HDF5", options)
        return Hdf5(root, options, files)
    folders = [file.parent for file in _below(root, (BAG_METADATA,))]
    if folders:
        from workloads.data.robot.rosbag.reader import Rosbags

        _refuse(root, "ROS 2 bag", options)
        return Rosbags(root, options, folders)
    raise UserError(f"expected a dataset in {root}, found {_contents(root)}; {WHAT_IS_READ}")


WHAT_IS_READ = (
    f"what is read: {LEROBOT_INFO} (LeRobot), {RLDS_FEATURES} (RLDS), {CALVIN_ANNOTATIONS} "
    "(CALVIN), **/episode_data.tfrecord or .npz (CRANE-X7), "
    f"**/*.hdf5 (robomimic, LIBERO, ALOHA), **/{BAG_METADATA} (ROS 2 bags)"
)


def _contents(root: Path) -> str:
    """Short description of a file or a folder that holds no dataset."""
    inner = [*root.glob(f"*/{LEROBOT_INFO}"), *root.glob(f"*/*/{LEROBOT_INFO}")]
    if inner:
        named = ", ".join(str(file.parents[1]) for file in sorted(inner)[:_MOST_NAMED])
        more = f" and {len(inner) - _MOST_NAMED} more" if len(inner) > _MOST_NAMED else ""
        return f"LeRobot datasets below it, {named}{more} (name one of them)"
    files = [root] if root.is_file() else root.rglob("*")
    names = [file.name for _, file in zip(range(10_000), files, strict=False)]
    ros_1 = [name for name in names if name.endswith(".bag")]
    if ros_1:
        return f"{ros_1[0]}, a bag of ROS 1 (rosbags-convert makes one of ROS 2 from it)"
    loose = [name for name in names if name.endswith((".mcap", ".db3"))]
    if loose:
        return f"{loose[0]} without a {BAG_METADATA} beside it (ros2 bag reindex writes one)"
    if root.is_file():
        return f"a file {root.name}"
    if not names:
        return "an empty folder"
    kinds = Counter(Path(name).suffix or name for name in names)
    listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(_MOST_NAMED))
    return f"none of a known format: {listed}"


def _below(root: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files below a folder with this ending, in plain string order; or the file itself."""
    if root.is_file():
        return [root] if root.name.endswith(endings) else []
    return [Path(file) for file in sorted(recordings.walk(root, endings))]


def _refuse(root: Path, format: str, options: Options) -> None:
    """Raise UserError for an option that the format has no use for."""
    values, special = asdict(options), {name for names in _SPECIAL.values() for name in names}
    given = [name for name in values if name in special - {*_SPECIAL[format]} and values[name]]
    if given:
        raise UserError(
            f"{root}: expected no {given[0]} for {format} recordings, found {values[given[0]]!r}; "
            "leave it out"
        )


def _check_map(dataset: Dataset) -> None:
    """Raise UserError for a mapped text that no episode has: a typing error."""
    said = {text for episode in dataset for text in episode.instructions}
    unused = [key for key, text in dataset.options.instruction_map.items() if text not in said]
    if unused:
        there = ", ".join(repr(text) for text in sorted(said)[:_MOST_NAMED])
        raise UserError(
            f"data.instruction_map: expected texts that {dataset.path} has, found {unused[0]!r}; "
            f"there are: {there}"
        )


def _rlds_folder(root: Path) -> Path | None:
    """The folder with features.json: the one given, or the newest version below it."""
    if not root.is_dir():
        return None
    if (root / RLDS_FEATURES).is_file():
        return root
    found = [*root.glob(f"*/{RLDS_FEATURES}"), *root.glob(f"*/*/{RLDS_FEATURES}")]
    # A dataset is a folder of versions; without them it is the folder itself.
    folders = [file.parent for file in found]
    names = sorted({folder.parent if _version(folder) else folder for folder in folders})
    if len(names) > 1:
        listed = ", ".join(str(name) for name in names)
        raise UserError(f"expected one RLDS dataset in {root}, found {listed}; name one of them")
    return max(folders, key=_version, default=None)


def _calvin_split(root: Path) -> Path | None:
    """The folder of frames with annotations: the one given, or the only one up to two levels below
    it, as in dataset/task_ABC_D/training."""
    if not root.is_dir():
        return None
    level = [root]
    for _ in range(3):
        folders = sorted(folder for folder in level if _is_split(folder))
        if folders:
            break
        walked = (next(os.walk(folder), ("", [], [])) for folder in level)
        level = [Path(folder, name) for folder, names, _ in walked for name in names]
    if len(folders) > 1:
        listed = ", ".join(str(folder) for folder in folders)
        raise UserError(f"expected one split of CALVIN in {root}, found {listed}; name one of them")
    return folders[0] if folders else None


def _is_split(folder: Path) -> bool:
    """Whether a folder is a split; one that may not be read, such as lost+found, is none."""
    return any(os.path.isfile(folder / name) for name in (CALVIN_ANNOTATIONS, CALVIN_RECORDINGS))


def _version(folder: Path) -> tuple[int, ...]:
    """1.0.0 as numbers; () for a folder with another name."""
    parts = folder.name.split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()
