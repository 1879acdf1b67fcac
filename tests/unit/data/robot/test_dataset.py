"""Opening, statistics, inspection and conversion, the same for every format."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.robot_data import (
    crane_episode,
    lerobot_video_v3,
    picture,
    rewrite,
    rlds,
    step_of,
    vectors,
)
from workloads.data.robot import open_dataset, statistics
from workloads.data.robot.crane_x7.writer import write_episode
from workloads.data.robot.drawing import action_curves, contact_sheet
from workloads.data.robot.inspect import inspect
from workloads.data.robot.lerobot.writer import to_lerobot_v3
from workloads.data.robot.player import player_page
from workloads.data.robot.statistics import write
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def test_nothing_known_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    for word in ("meta/info.json", "features.json", "episode_data.tfrecord", ".npz"):
        assert word in str(caught.value)
    with pytest.raises(UserError, match="found nothing at"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(UserError, match="color_order of rgb or bgr"):
        open_dataset(tmp_path, color_order="grb")  # type: ignore[arg-type]


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    crane_episode(tmp_path / "crane", 4)
    lerobot_video_v3(tmp_path / "lerobot")
    for folder, options, name in (
        ("crane", {"split": "train"}, "split for CRANE-X7"),
        ("crane", {"action_keys": ["action"]}, "action_keys for CRANE-X7"),
        ("lerobot", {"split": "train"}, "split for LeRobot"),
    ):
        with pytest.raises(UserError, match=f"expected no {name} recordings, found .*; leave it"):
            open_dataset(tmp_path / folder, **options)


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    crane_episode(tmp_path / "crane")
    rlds(tmp_path / "rlds")
    lerobot_video_v3(tmp_path / "lerobot")
    code = (
        "import sys; from workloads.data.robot import open_dataset\n"
        "for path in sys.argv[1:]: print(len(open_dataset(path).verify()))\n"
        "assert not {'torch', 'tensorflow', 'matplotlib'} & set(sys.modules)"
    )
    paths = [str(tmp_path / name) for name in ("crane", "rlds", "lerobot")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "0", "0"]


def test_statistics_against_numpy(tmp_path: Path) -> None:
    for number in range(3):
        crane_episode(tmp_path / f"episode_{number}", 5 + number, seed=number)
    dataset = open_dataset(tmp_path)
    actions = np.concatenate([vectors(5 + n, n)[1:] for n in range(3)]).astype(np.float64)
    table = statistics(dataset, mask=[True] * 7 + [False])["crane_x7"]
    assert np.allclose(table["action"]["std"], actions.std(0), atol=1e-12)
    assert np.allclose(table["action"]["q99"], np.quantile(actions, 0.99, axis=0), atol=1e-12)
    assert table["action"]["mask"] == [True] * 7 + [False] and "mask" not in table["proprio"]
    assert (table["num_transitions"], table["num_trajectories"]) == (15, 3)
    part = statistics(dataset, name="mine", episodes=[1])["mine"]
    assert (part["num_transitions"], part["num_trajectories"]) == (5, 1)
    with pytest.raises(UserError, match="a mask of 8 values.*found 3"):
        statistics(dataset, mask=[True] * 3)


def test_statistics_count_only_episodes_with_steps(tmp_path: Path) -> None:
    crane_episode(tmp_path / "episode_0")
    (tmp_path / "episode_1").mkdir()
    (tmp_path / "episode_1" / "episode_data.tfrecord").touch()
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 2
    assert statistics(dataset)["crane_x7"]["num_trajectories"] == 1
    (tmp_path / "episode_0" / "episode_data.tfrecord").unlink()
    with pytest.raises(UserError, match="at least one usable step"):
        statistics(open_dataset(tmp_path))


def test_statistics_file_says_how_colours_were_stored(tmp_path: Path) -> None:
    crane_episode(tmp_path / "data")
    (tmp_path / "data" / "meta.json").unlink()
    write(open_dataset(tmp_path / "data"), tmp_path / "dataset_statistics.json")
    table = json.loads((tmp_path / "dataset_statistics.json").read_text())
    assert table["crane_x7"]["color_order"] == ["bgr"]


def test_inspect(tmp_path: Path) -> None:
    crane_episode(tmp_path / "episode_0", 8, cameras=("primary", "wrist"))
    file = crane_episode(tmp_path / "episode_1", 6, seed=1, instruction="open the door")
    rewrite(
        file,
        {
            1: {"action": np.array([-0.5, -0.5, 2.9, -0.5, -0.5, -0.5, -0.5, 0.3], np.float32)},
            3: {"action": None},
            4: {"observation/image_primary": b"\xff\xd8\xff broken"},
        },
    )
    found = inspect(open_dataset(tmp_path))
    json.dumps(found)
    assert (found["episodes"], found["steps"], found["gaps"]) == (2, 7 + 4, 1)
    assert found["instructions"] == {"pick up the cube": 1, "open the door": 1}
    wrist = {"episodes": 1, "shape": [24, 32, 3], "other_shapes": []}
    assert found["cameras"]["wrist"] == wrist
    outside = {row["name"]: row["outside"] for row in found["actions"] if row["outside"]}
    assert outside == {"upper_arm_twist": 1}
    assert found["actions"][2]["max"] == pytest.approx(2.9)
    assert found["damage_counts"] == {"missing_feature": 1, "bad_image": 1}
    assert [item["record"] for item in found["damage"]] == [3, 4]
    quick = inspect(open_dataset(tmp_path), verify=False)
    assert quick["damage_counts"] == {"missing_feature": 1} and not quick["verified"]


def test_inspect_of_another_robot_has_no_limits(tmp_path: Path) -> None:
    found = inspect(open_dataset(rlds(tmp_path / "toy")))
    assert "limits" not in found["actions"][0] and found["actions"][0]["name"] == "dimension 0"


def test_pictures_for_people(tmp_path: Path) -> None:
    crane_episode(tmp_path / "data" / "episode_0", 9, cameras=("primary", "wrist"))
    file = crane_episode(tmp_path / "data" / "episode_1", 4)
    rewrite(file, {0: {"observation/image_primary": b"\xff\xd8\xff broken"}})
    dataset = open_dataset(tmp_path / "data")
    damage = contact_sheet(dataset, tmp_path / "sheet.png", frames=4)
    assert [item.record for item in damage] == [0]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 180 + 6, 4 * 166 + 6, 3)
    # V-P1: 32 x 24 is enlarged four times, in the middle of its tile.
    centres = [sheet[98 - 40 : 98 + 40, 166 * n + 86 - 50 : 166 * n + 86 + 50] for n in range(4)]
    assert [step_of(centre) for centre in centres] == [0, 2, 5, 7]
    assert all((centre == centre[0, 0]).all() for centre in centres), "not smoothed"
    action_curves(dataset, tmp_path / "curves.png")
    curves = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert curves.shape[0] > 400 and curves.min() < 100 < curves.mean()


def test_a_page_that_plays_episodes(tmp_path: Path) -> None:
    """One file, nothing from elsewhere, and no text of the data that could be taken for code."""
    crane_episode(tmp_path / "data/episode_0", 9, instruction="</script><b>take & lift</b>")
    file = crane_episode(tmp_path / "data/episode_1", 5, cameras=("primary", "wrist"))
    rewrite(file, {1: {"observation/image_wrist": b"\xff\xd8\xff broken"}})
    player_page(open_dataset(tmp_path / "data"), tmp_path / "page.html", frames=4)
    page = (tmp_path / "page.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "") and "<b>" not in page
    facts = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    first, second = facts["episodes"]
    assert first["said"][0] == "</script><b>take & lift</b>" and first["shown"] == [0, 2, 5, 7]
    assert facts["names"][-1] == "gripper" and len(first["actions"]) == 8
    actions = np.concatenate([episode["actions"] for episode in facts["episodes"]])
    ranges = np.stack([actions.min(0), actions.max(0)], axis=1)
    assert np.allclose(facts["ranges"], ranges, rtol=1e-5), "one axis for all episodes"
    assert [image is None for image in second["images"]["wrist"]] == [False, True, False, False]
    frame = Image.open(io.BytesIO(base64.b64decode(first["images"]["primary"][2])))
    assert step_of(np.asarray(frame)) == 5


def test_a_sheet_says_whose_frames_they_are(tmp_path: Path) -> None:
    """V-P1: borders show white images, and letters it has not are no boxes."""
    white = [np.full((24, 32, 3), 255, np.uint8)] * 3
    write_episode(tmp_path / "data/a", vectors(3), {"primary": white}, "引き出しを開ける")
    contact_sheet(open_dataset(tmp_path / "data"), tmp_path / "sheet.png", frames=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    tile = sheet[38:158, 6:166]
    assert (tile[60, 80] == 255).all() and (tile[3, 3] < 230).all() and (tile[0, 0] < 120).all()
    assert sheet[6:20].min() < 100 and sheet[159:172].min() < 130, "labels and step numbers"


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_curves_fill_their_plots(tmp_path: Path, scale: float) -> None:
    """V-P2: the axis is that of the data, limits are drawn where they are near."""
    from matplotlib.figure import Figure

    from workloads.data.robot import drawing

    states = (vectors(9) * scale).astype(np.float32)
    write_episode(tmp_path / "a", states, {"primary": [picture(t) for t in range(9)]}, "x")
    dataset = open_dataset(tmp_path)
    axes = Figure().add_subplot()
    drawing._draw(axes, dataset, [dataset[0]], 3)
    low, high = axes.get_ylim()
    values = dataset[0].actions[:, 3]
    assert high - low < 1.6 * np.ptp(values) and axes.get_title() == "upper_arm_rotate"
    # q01 and q99, and the upper limit of 0 where the motion is near it.
    assert len(axes.lines) == (4 if values.max() > -0.25 * np.ptp(values) else 3)


def test_rounding_does_not_fill_a_plot(tmp_path: Path) -> None:
    """V-P2: what stands still but for the last bit of float32 is drawn as a straight line."""
    from matplotlib.figure import Figure

    from workloads.data.robot import drawing

    states = vectors(9)
    states[:, 2] = np.float32(0.5)
    states[4, 2] = np.nextafter(np.float32(0.5), np.float32(0))
    write_episode(tmp_path / "a", states, {"primary": [picture(t) for t in range(9)]}, "x")
    dataset = open_dataset(tmp_path)
    axes = Figure().add_subplot()
    drawing._draw(axes, dataset, [dataset[0]], 2)
    low, high = axes.get_ylim()
    assert low < 0.47 and high > 0.53


def test_pictures_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "episode_data.tfrecord").touch()
    dataset = open_dataset(tmp_path)
    with pytest.raises(UserError, match="expected images"):
        contact_sheet(dataset, tmp_path / "x.png")
    with pytest.raises(UserError, match="expected steps to draw"):
        action_curves(dataset, tmp_path / "x.png")


def test_conversion_cuts_at_gaps_and_broken_pictures(tmp_path: Path) -> None:
    file = crane_episode(tmp_path / "data", 12)
    rewrite(
        file,
        {3: {"action": None}, 7: {"observation/image_primary": b"\xff\xd8\xff broken"}},
    )
    done = to_lerobot_v3(open_dataset(tmp_path / "data"), tmp_path / "out")
    assert (done.episodes, done.frames) == (3, 9)
    assert [item.record for item in done.skipped] == [7]
    again = open_dataset(done.path)
    steps = [[step_of(e.image("primary", t)) for t in range(len(e))] for e in again]
    assert steps == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
    for episode in again:
        assert episode.timestamps is not None
        assert np.allclose(episode.timestamps, [0, 0.1, 0.2])


def test_conversion_past_the_budget_leaves_nothing(tmp_path: Path) -> None:
    file = crane_episode(tmp_path / "data", 30)
    broken = {"observation/image_primary": b"\xff\xd8\xff broken"}
    rewrite(file, {step: broken for step in range(4, 15)})
    with pytest.raises(UserError, match="expected at most 10 damaged records, found 11 of 29"):
        to_lerobot_v3(open_dataset(tmp_path / "data"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    done = to_lerobot_v3(open_dataset(tmp_path / "data", damage_budget=11), tmp_path / "out")
    assert (done.frames, len(done.skipped)) == (18, 11)


def test_conversion_writes_groups_that_are_quick_to_read_one_picture_of(tmp_path: Path) -> None:
    crane_episode(tmp_path / "data", 20)
    done = to_lerobot_v3(open_dataset(tmp_path / "data"), tmp_path / "out")
    facts = pq.ParquetFile(done.path / "data/chunk-000/file-000.parquet").metadata
    assert [facts.row_group(n).num_rows for n in range(facts.num_row_groups)] == [8, 8, 3]
    (episode,) = open_dataset(done.path)
    assert [step_of(episode.image("primary", t)) for t in (18, 0, 8, 7)] == [18, 0, 8, 7]


def test_conversion_of_every_format(tmp_path: Path) -> None:
    sources = {
        "video": open_dataset(lerobot_video_v3(tmp_path / "video")),
        "rlds": open_dataset(rlds(tmp_path / "rlds")),
    }
    for name, source in sources.items():
        done = to_lerobot_v3(source, tmp_path / "out" / name, fps=20)
        again = open_dataset(done.path)
        assert again.fps == 20 and again.cameras == source.cameras and again.name == source.name
        for a, b in zip(source, again, strict=True):
            assert a.instruction == b.instruction and np.array_equal(a.states, b.states)
            for camera in a.cameras:
                assert np.array_equal(a.image(camera, 1), b.image(camera, 1))


def test_conversion_refuses(tmp_path: Path) -> None:
    source = open_dataset(rlds(tmp_path / "rlds"))
    with pytest.raises(UserError, match="expected a frame rate"):
        to_lerobot_v3(source, tmp_path / "out")
    with pytest.raises(UserError, match="expected an empty folder"):
        to_lerobot_v3(source, tmp_path / "rlds", fps=5)
    crane_episode(tmp_path / "crane" / "a", 4)
    large = [picture(t, (30, 40)) for t in range(4)]
    write_episode(tmp_path / "crane" / "b", vectors(4), {"primary": large}, "x")
    with pytest.raises(UserError, match=r"images of primary of \(24, 32, 3\), found \(30, 40"):
        to_lerobot_v3(open_dataset(tmp_path / "crane"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_conversion_starts_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workloads.data.robot.lerobot import layout

    monkeypatch.setattr(layout, "DATA_FILE_BYTES", 2000)
    for number in range(5):
        crane_episode(tmp_path / "data" / f"episode_{number}", 6, seed=number)
    source = open_dataset(tmp_path / "data")
    done = to_lerobot_v3(source, tmp_path / "out")
    assert len(list((done.path / "data").rglob("*.parquet"))) > 1
    again = open_dataset(done.path)
    assert again.verify() == []
    for a, b in zip(source, again, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert np.array_equal(a.image("primary", 4), b.image("primary", 4))


def test_statistics_of_a_conversion_are_right(tmp_path: Path) -> None:
    for number in range(2):
        crane_episode(tmp_path / "data" / f"episode_{number}", 6, seed=number)
    source = open_dataset(tmp_path / "data")
    stats = json.loads(
        (to_lerobot_v3(source, tmp_path / "out").path / "meta/stats.json").read_text()
    )
    pixels = np.stack([e.image("primary", t) for e in source for t in range(len(e))]) / 255.0
    table = stats["observation.images.primary"]
    assert np.allclose(np.ravel(table["mean"]), pixels.mean((0, 1, 2)))
    assert np.allclose(np.ravel(table["std"]), pixels.std((0, 1, 2)))
    flat = pixels.reshape(-1, 3)
    assert np.allclose(np.ravel(table["q50"]), np.quantile(flat, 0.5, axis=0, method="lower"))
    assert np.allclose(np.ravel(table["max"]), flat.max(0))
    assert table["count"] == [10]
    actions = np.concatenate([e.actions for e in source]).astype(np.float64)
    assert np.allclose(stats["action"]["q10"], np.quantile(actions, 0.1, axis=0))
    assert stats["index"]["max"] == [9]
