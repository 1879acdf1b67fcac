"""CALVIN splits: spans, frames, what is damaged, and a pickle of which nothing is run."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.calvin_cases import annotate, write_calvin, write_frame
from tests.support.robot_data import step_of
from workloads.cli import main
from workloads.data.robot import open_dataset
from workloads.errors import UserError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spans_are_episodes(tmp_path: Path, dtype: type) -> None:
    dataset = open_dataset(write_calvin(tmp_path / "training", dtype=dtype))
    assert [episode.name for episode in dataset][:2] == ["00000 task_0", "00001 task_1"]
    assert dataset.lengths.tolist() == [12, 11, 4] and dataset.seen == 20
    episode = pickle.loads(pickle.dumps(dataset))[1]
    assert episode.instruction == "do task_1" and episode.rows.tolist() == list(range(8, 19))
    assert (
        episode.states.dtype == np.float32
        and episode.states[:, 0].tolist() == episode.rows.tolist()
    )
    assert [step_of(episode.image(camera, 4)) for camera in dataset.cameras] == [12, 12]
    assert episode.image("gripper", 0).shape == (9, 7, 3)
    assert set(dataset.unused) == {"actions", "scene_obs"} and dataset.verify() == []


def test_the_folder_of_splits(tmp_path: Path) -> None:
    write_calvin(tmp_path / "set/training")
    assert open_dataset(tmp_path / "set").name == "training"
    write_calvin(tmp_path / "set/validation")
    with pytest.raises(UserError, match="one split of CALVIN.*validation; name one of them"):
        open_dataset(tmp_path / "set")
    write_calvin(tmp_path / "download/dataset/task_D_D/training")
    assert open_dataset(tmp_path / "download/dataset").name == "training"
    with pytest.raises(UserError, match="expected no split for CALVIN recordings"):
        open_dataset(tmp_path / "set/training", split="training")


@pytest.mark.runs("tatara data inspect data/calvin/task_ABC_D/training")
def test_it_can_be_inspected_and_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_calvin(tmp_path / "training")
    assert main(["data", "inspect", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "calvin, training, 30 Hz" in printed and "delta_yaw" in printed
    assert main(["data", "convert", str(folder), str(tmp_path / "out")]) == 0
    converted = open_dataset(tmp_path / "out")
    assert converted[2].instruction == "do task_2" and len(converted[0]) == 12


def test_damaged_and_missing_frames_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_calvin(tmp_path / "training")
    (folder / "episode_0000009.npz").unlink()
    cut = folder / "episode_0000011.npz"
    cut.write_bytes(cut.read_bytes()[:200])
    write_frame(folder, 13, rel_actions=np.full(7, np.nan))
    write_frame(folder, 15, robot_obs=np.zeros(8))
    write_frame(folder, 17, rgb_gripper=None)
    dataset = open_dataset(folder)
    found = {(Path(item.file).name, item.trouble) for item in dataset.verify()}
    assert found == {
        ("episode_0000009.npz", "missing_file"),
        ("episode_0000011.npz", "bad_file"),
        ("episode_0000013.npz", "non_finite"),
        ("episode_0000015.npz", "wrong_dim"),
        ("episode_0000017.npz", "missing_feature"),
    }
    assert dataset[1].rows.tolist() == [8, 10, 12, 14, 16, 17, 18] and len(dataset[1].gaps) == 4
    main(["data", "inspect", str(folder)])
    assert "episode_0000009.npz" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"episode_0000009\.npz.*missing_file"):
        open_dataset(folder, damage_budget=0)


def test_a_camera_that_begins_late_is_no_camera_less(tmp_path: Path) -> None:
    folder = write_calvin(tmp_path / "training")
    for frame in range(3, 8):
        write_frame(folder, frame, rgb_gripper=None)
    dataset = open_dataset(folder)
    assert dataset.cameras == ("static", "gripper")
    lost = [item for item in dataset.verify() if item.trouble == "missing_feature"]
    assert len(lost) == 5


def test_a_span_across_two_recordings_is_told(tmp_path: Path) -> None:
    folder = write_calvin(tmp_path / "training", spans=[(18, 29)])
    dataset = open_dataset(folder, damage_budget=100)
    assert "frames 18 to 29 are not of one recording" in dataset.notes[0]


@pytest.mark.parametrize("span", [(30, 500), (900, 911), (3, 2_000_000_000)])
def test_spans_of_frames_that_are_not_there(tmp_path: Path, span: tuple[int, int]) -> None:
    """Named at once, whatever their length."""
    folder = write_calvin(tmp_path / "training", spans=[(3, 14), span])
    with pytest.raises(UserError, match=r"annotation 1 from frame|missing_file") as caught:
        open_dataset(folder)
    assert str(folder) in str(caught.value)


def test_a_frame_that_is_no_archive(tmp_path: Path) -> None:
    """One array, an empty file, a text."""
    folder = write_calvin(tmp_path / "training")
    np.save(folder / "one.npy", np.zeros(7))
    (folder / "one.npy").rename(folder / "episode_0000009.npz")
    (folder / "episode_0000010.npz").write_bytes(b"")
    (folder / "episode_0000012.npz").write_text("404 not found")
    claim = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 3)}
    np.lib.format.write_array_header_1_0(claim, described)
    with zipfile.ZipFile(folder / "episode_0000013.npz", "a") as archive:
        archive.writestr("rgb_static.npy", claim.getvalue())  # terabytes, it says
    found = {(item.record, item.trouble) for item in open_dataset(folder).verify()}
    assert found == {(number, "bad_file") for number in (9, 10, 12, 13)}


def test_values_that_cannot_be_trained_on(tmp_path: Path) -> None:
    """Finite in float64 alone; an image without pixels; whole numbers."""
    folder = write_calvin(tmp_path / "training")
    write_frame(folder, 9, rel_actions=np.full(7, 1e300))
    write_frame(folder, 10, rgb_static=np.zeros((0, 30, 3), np.uint8))
    write_frame(folder, 12, robot_obs=np.zeros(15, int))
    found = {(item.record, item.trouble): item for item in open_dataset(folder).verify()}
    assert set(found) == {(9, "non_finite"), (10, "wrong_dim"), (12, "wrong_dim")}
    assert "robot_obs is int64 [15], not float [15]" in str(found[12, "wrong_dim"])


class _Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, np.load, getattr])
def test_nothing_in_the_pickle_is_run(tmp_path: Path, function: Any) -> None:
    folder = write_calvin(tmp_path / "training")
    file = annotate(folder, [(1, 2)], [_Evil(function, f"touch {tmp_path}/ran")], ["x"])
    with pytest.raises(UserError, match="could run code; nothing was run"):
        open_dataset(folder)
    assert file.is_file() and not (tmp_path / "ran").exists()


def test_pickles_of_old_and_new_numpy(tmp_path: Path) -> None:
    folder = write_calvin(tmp_path / "training")
    spans = [tuple(span) for span in np.array([(3, 6), (8, 9)])]  # of numpy's own integers
    file = annotate(folder, spans, ["a", "b"], ["x", "y"])
    new = file.read_bytes()
    assert b"numpy._core" in new
    assert [len(episode) for episode in open_dataset(folder)] == [4, 2]
    content = np.load(file, allow_pickle=True)
    header = new[: new.index(b"\n") + 1]
    old = pickle.dumps(content, protocol=3).replace(b"cnumpy._core.", b"cnumpy.core.")
    assert b"numpy._core" not in old
    file.write_bytes(header + old)
    assert [episode.instruction for episode in open_dataset(folder)] == ["a", "b"]
    with file.open("wb") as stream:
        np.lib.format.write_array(stream, content, version=(2, 0))
    assert [episode.instruction for episode in open_dataset(folder)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "a damaged file"),
        (b"\x93NUMPY\x01\x00", "a damaged file"),
        (b"\x93NUMPY\x01\x00\x14\x00{'descr': '|O', 'sha\n", "a damaged file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_damaged_annotations(tmp_path: Path, content: bytes, found: str) -> None:
    folder = write_calvin(tmp_path / "training")
    file = folder / "lang_annotations/auto_lang_ann.npy"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file.name}.*{found}"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("spans", "texts", "found"),
    [
        ([(5, 3)], ["a"], "span 0 from frame 5 to 3"),
        ([(1, 2, 3)], ["a"], "no pair of frame numbers"),
        ([(1.5, 2)], ["a"], "no pair of frame numbers"),
        ([(1, float("inf"))], ["a"], "no pair of frame numbers"),
        ([(1, 2)], ["a", "b"], "1 spans, 2 texts"),
        ([(1, 2)], [7], "7 of task 'x' as what span 0 shows"),
        ([(1, 2)], ["open \ud800"], "as what span 0 shows"),
        (4, ["a"], "no list info.indx"),
    ],
)
def test_annotations_that_make_no_sense(tmp_path: Path, spans: Any, texts: Any, found: str) -> None:
    folder = write_calvin(tmp_path / "training")
    file = folder / "lang_annotations/auto_lang_ann.npy"
    content = {"language": {"ann": texts, "task": ["x"]}, "info": {"indx": spans}}
    np.save(file, np.array(content, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=found):
        open_dataset(folder)


def test_play_without_annotations_is_refused(tmp_path: Path) -> None:
    folder = write_calvin(tmp_path / "training")
    (folder / "lang_annotations/auto_lang_ann.npy").unlink()
    with pytest.raises(UserError, match="expected lang_annotations/auto_lang_ann.npy, found none"):
        open_dataset(folder)
