"""What conversion keeps: encoded images, steps, names; and that it leaves nothing half."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.lerobot_cases import TOP, v2
from tests.support.robot_data import crane_episode, lerobot_video_v3, rlds, step_of
from workloads.cli import main
from workloads.data.robot import converting, open_dataset
from workloads.data.robot.crane_x7.converter import to_crane_x7
from workloads.data.robot.lerobot.encode import encode_video
from workloads.data.robot.lerobot.writer import to_lerobot_v3
from workloads.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for number in range(3):
        crane_episode(
            tmp_path / "data" / f"episode_{number}", 7, seed=number, cameras=("primary", "wrist")
        )
    return tmp_path / "data"


def test_encoded_images_are_kept_byte_for_byte(recordings: Path) -> None:
    """V-D01."""
    source = open_dataset(recordings)
    done = to_lerobot_v3(source, recordings.parent / "out")
    assert done.kept == 2 * done.frames == 36
    for a, b in zip(source, open_dataset(done.path), strict=True):
        for camera in a.cameras:
            for t in range(len(a)):
                assert a.encoded(camera, t) == b.encoded(camera, t)


def test_images_with_colours_exchanged_are_encoded_again(recordings: Path) -> None:
    """V-D01: only where pixels stay as they are."""
    for file in recordings.rglob("meta.json"):
        file.unlink()
    done = to_lerobot_v3(open_dataset(recordings, color_order="bgr"), recordings.parent / "out")
    again = open_dataset(done.path)
    assert done.kept == 0 and (again[0].encoded("primary", 0) or b"").startswith(b"\x89PNG")


def test_all_cores_write_what_one_writes(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = open_dataset(recordings), recordings.parent
    to_lerobot_v3(source, out / "one", workers=1)
    monkeypatch.setattr(converting, "_IMAGES_WORTH_PROCESSES", 0)
    to_lerobot_v3(source, out / "two", workers=2)
    files = sorted(p.relative_to(out / "one") for p in (out / "one").rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(out / "two") for p in (out / "two").rglob("*") if p.is_file()
    )
    for file in files:
        assert (out / "one" / file).read_bytes() == (out / "two" / file).read_bytes(), file


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_videos_have_every_frame(recordings: Path, codec: str) -> None:
    source, out = open_dataset(recordings), recordings.parent / "out"
    assert main(["data", "convert", str(recordings), str(out), "--video", codec]) == 0
    again = open_dataset(out)
    assert again.verify() == [] and again.cameras == ("primary", "wrist")
    assert len(list(out.rglob("*.mp4"))) == 6 and not (out / "encoding").exists()
    for a, b in zip(source, again, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert [step_of(b.image("wrist", t)) for t in range(len(b))] == list(range(len(a)))


def test_encoding_av1_leaves_the_process_at_its_priority(tmp_path: Path) -> None:
    """Run as root the encoder would put this process, and all it starts, before everything else."""
    frames = [np.full((64, 64, 3), level, np.uint8) for level in range(0, 250, 25)]
    encode_video(tmp_path / "one.mp4", frames, 10, "av1")
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            found.add(os.sched_getscheduler(int(thread.name)))
    assert found == {os.SCHED_OTHER}


def test_a_frame_that_comes_back_as_another_one_is_refused(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from workloads.data.robot.lerobot import encode

    monkeypatch.setattr(encode, "_MOST_OFF", 0.01)
    out = recordings.parent / "out"
    assert main(["data", "convert", str(recordings), str(out), "--video", "h264"]) == 2
    assert "frame 0 is off by" in capsys.readouterr().err
    assert not out.exists() and not (recordings.parent / "out.partial").exists()


@pytest.mark.runs("tatara data convert outputs/lerobot data/again --to crane-x7")
def test_back_to_crane_x7(recordings: Path) -> None:
    source = open_dataset(recordings, drop_last_placeholder=False)
    there = to_lerobot_v3(source, recordings.parent / "there").path
    back = recordings.parent / "back"
    words = ["--to", "crane-x7", "--keep-placeholder"]
    assert main(["data", "convert", str(there), str(back), *words]) == 0
    again = open_dataset(back, drop_last_placeholder=False)
    assert again.format == "crane_x7" and again.name == source.name and again.fps == source.fps
    for a, b in zip(source, again, strict=True):
        assert a.instruction == b.instruction and a.cameras == b.cameras
        assert np.array_equal(a.states, b.states) and np.array_equal(a.actions, b.actions)
        assert [a.encoded("wrist", t) for t in range(7)] == [
            b.encoded("wrist", t) for t in range(7)
        ]


def test_every_format_to_crane_x7(tmp_path: Path) -> None:
    sources = {
        "video": open_dataset(lerobot_video_v3(tmp_path / "video")),
        "rlds": open_dataset(rlds(tmp_path / "rlds")),
    }
    for name, source in sources.items():
        done = to_crane_x7(source, tmp_path / "out" / name, fps=20)
        again = open_dataset(done.path, drop_last_placeholder=False)
        assert again.fps == 20 and again.name == source.name
        for a, b in zip(source, again, strict=True):
            assert a.instruction == b.instruction and np.array_equal(a.states, b.states)
            camera = a.cameras[0]
            off = a.image(camera, 1).astype(int) - b.image(b.cameras[0], 1)
            assert np.abs(off).max() < 12


def test_steps_keep_their_instructions_and_missing_states_stay_missing(tmp_path: Path) -> None:
    """V-A09, V-A20."""
    tasks = ("open the drawer", "put the block in")
    v2(tmp_path / "two", (8, 8), TOP, tasks, each=lambda e: {"tasks": np.repeat([0, 1], 4)})
    for convert in (to_lerobot_v3, to_crane_x7):
        source = open_dataset(tmp_path / "two")
        again = open_dataset(convert(source, tmp_path / convert.__name__).path)
        said = [source[1].instruction_at(t) for t in range(7)]
        assert [again[1].instruction_at(t) for t in range(7)] == said
    from tests.support.lerobot_cases import no_state

    no_state(tmp_path / "none")
    for convert in (to_lerobot_v3, to_crane_x7):
        done = convert(open_dataset(tmp_path / "none"), tmp_path / f"none_{convert.__name__}")
        assert open_dataset(done.path)[0].states.shape == (8, 0)


def test_a_stop_leaves_nothing(tmp_path: Path) -> None:
    """V-D01: SIGTERM while it writes."""
    for number in range(12):
        crane_episode(tmp_path / "data" / f"episode_{number}", 30, seed=number)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "workloads.cli", "data", "convert", str(tmp_path / "data")]
    env = {**os.environ, "TATARA_CACHE": str(tmp_path / "cache")}
    words = [str(out), "--size", "600"]
    process = subprocess.Popen([*command, *words], env=env, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (tmp_path / "out.partial/data").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


def test_videos_are_for_lerobot_alone(recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "convert", str(recordings), "out", "--to", "crane-x7", "--video", "h264"]
    assert main(words) == 2
    assert "--video: expected --to lerobot" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected an empty folder"):
        to_crane_x7(open_dataset(recordings), recordings)
