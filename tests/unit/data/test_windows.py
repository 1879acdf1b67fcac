"""Windows with chunks and masks, of any format, each image decoded once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.calvin_cases import write_calvin
from tests.support.robot_data import crane_episode, step_of
from workloads.data.robot import open_dataset
from workloads.data.robot.calvin import reader
from workloads.data.windows import WindowOptions, Windows
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def test_the_last_frame_of_calvin_is_padding(tmp_path: Path) -> None:
    windows = Windows(open_dataset(write_calvin(tmp_path / "training")), WindowOptions(4, 3))
    assert len(windows) == (11 - 3) + (10 - 3) + 0  # the last span is too short
    last = windows[7]
    assert last.rows.tolist() == [10, 11, 12, 13] and last.instruction == "do task_0"
    assert last.mask.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert last.action_rows.tolist()[-1] == [13, 14, 14]
    assert np.allclose(last.actions[..., 0], last.action_rows / 100)
    assert [step_of(image) for image in last.images["gripper"]] == [10, 11, 12, 13]


def test_other_formats_have_an_action_at_their_last_step(tmp_path: Path) -> None:
    crane_episode(tmp_path / "set", 7)
    dataset = open_dataset(tmp_path / "set")
    windows = Windows(dataset, WindowOptions(4, 2))
    assert len(dataset[0]) == 6 and len(windows) == 3
    assert windows[2].mask.tolist() == [[1, 1], [1, 1], [1, 1], [1, 0]]
    assert np.array_equal(windows[2].actions[-1, 0], dataset[0].actions[-1])
    assert windows[-1].states.shape == (4, dataset[0].states.shape[1])


def test_no_window_reaches_over_a_gap(tmp_path: Path) -> None:
    folder = write_calvin(tmp_path / "training", spans=[(0, 20)])
    (folder / "episode_0000010.npz").unlink()
    windows = Windows(open_dataset(folder), WindowOptions(4, 3))
    assert [window.rows[0] for window in windows] == [*range(0, 7), *range(11, 17)]
    assert windows[6].mask.sum(1).tolist() == [3, 3, 2, 1]
    assert windows[6].action_rows.max() == 9


@pytest.mark.parametrize("kept", [4, 12, 16, 1000])
def test_each_image_is_decoded_once_in_an_epoch(
    tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = [(0, 20), (28, 36), (5, 12), (12, 20)]
    dataset = open_dataset(write_calvin(tmp_path / "training", spans=spans))
    read: Counter[tuple[str, int]] = Counter()
    pixels = reader._Frames.pixels

    def counted(self: reader._Frames, camera: str, row: int) -> np.ndarray:
        read[camera, row] += 1
        return pixels(self, camera, row)

    monkeypatch.setattr(reader._Frames, "pixels", counted)
    windows = Windows(dataset, WindowOptions(4, 3, frames_kept=kept), lambda image: image[:2])
    order = windows.order(seed=1)
    assert sorted(order) == list(range(len(windows)))
    for number in order:
        window = windows[number]
        assert window.images["static"].shape == (4, 2, 30, 3)
        assert [step_of(image) for image in window.images["static"]] == [
            row % 30 for row in window.rows
        ]
        assert len(windows._images) <= 2 * kept
    assert read and set(read.values()) == {1}
    assert order == windows.order(seed=1) and order != windows.order(seed=2, epoch=3)


def test_options_that_cannot_be(tmp_path: Path) -> None:
    dataset = open_dataset(write_calvin(tmp_path / "training"))
    with pytest.raises(UserError, match="expected a chunk of at least 1, found 0"):
        WindowOptions(8, 0)
    with pytest.raises(UserError, match="frames_kept of at least the window's 8 steps"):
        WindowOptions(8, 1, frames_kept=7)
    with pytest.raises(UserError, match="an episode of at least 12 steps, found none"):
        Windows(dataset, WindowOptions(12, 1))
    with pytest.raises(UserError, match="expected one of the cameras static, gripper"):
        Windows(dataset, WindowOptions(4, 1, cameras=("wrist",)))
