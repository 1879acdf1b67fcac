"""`tatara data`: what people and programs are told of a dataset, and what becomes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.robot_data import crane_episode, rewrite, rlds, vectors
from workloads.cli import main
from workloads.commands.common import Ticker
from workloads.data.robot import open_dataset

pytestmark = pytest.mark.unit


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two episodes of six steps, the second with a damaged picture at record 2."""
    monkeypatch.setenv("TATARA_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "logs"
    crane_episode(root / "episode_0000_a", instruction="pick up the cube")
    file = crane_episode(root / "episode_0001_b", seed=1, instruction="open the drawer")
    rewrite(file, {2: {"observation/image_primary": b"\xff\xd8\xffrubbish"}})
    return root


def test_inspect_tells_people(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(logs)]) == 0
    text = capsys.readouterr().out
    assert "2 episodes, 10 steps (5 to 5 each)" in text
    assert "    1 x open the drawer" in text
    assert "camera primary: 2 episodes, 32 x 24" in text
    assert "gripper" in text and "outside of" not in text
    assert "damage: 1 bad_image (every image read)" in text and "record 2" in text


def test_inspect_tells_programs_and_draws(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = logs.parent / "pictures"
    assert main(["data", "inspect", str(logs), "--json", "--output", str(pictures)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["steps"], found["refused"]) == (2, 10, None)
    assert [item["record"] for item in found["damage"]] == [2]
    assert found["written"] == [
        str(pictures / n) for n in ("contact_sheet.png", "action_curves.png", "episodes.html")
    ]
    for path in found["written"][:2]:
        assert Image.open(path).size[0] > 300


def test_inspect_names_joints_beyond_their_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TATARA_CACHE", str(tmp_path / "cache"))
    file = crane_episode(tmp_path / "logs/episode_0000_a")
    rewrite(file, {1: {"action": np.full(8, 2.0, np.float32)}})
    assert main(["data", "inspect", str(tmp_path / "logs"), "--quick"]) == 0
    text = capsys.readouterr().out
    assert "1 outside of -1.5708..1.5708" in text and "images not read" in text


def test_inspect_says_where_a_training_would_refuse(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {at: {"observation/image_primary": b"\xff\xd8\xff"} for at in range(12)}
    rewrite(crane_episode(logs / "episode_0002_c", 12), bad)
    assert main(["data", "inspect", str(logs)]) == 1
    assert "a training would refuse this: expected at most 10" in capsys.readouterr().out


def test_convert_keeps_what_is_sound(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = logs.parent / "lerobot"
    assert main(["data", "convert", str(logs), str(out), "--to", "lerobot"]) == 0
    text = capsys.readouterr().out
    assert "left out: " in text and "LeRobot v3.0, 3 episodes, 9 steps" in text
    dataset = open_dataset(out, drop_last_placeholder=False)
    assert dataset.format == "lerobot" and dataset.verify() == []
    assert np.array_equal(dataset[0].actions, vectors(6)[1:])
    assert [len(episode) for episode in dataset] == [5, 2, 2]


def test_convert_makes_squares_of_pictures(logs: Path) -> None:
    out = logs.parent / "small"
    assert main(["data", "convert", str(logs), str(out), "--size", "16"]) == 0
    dataset = open_dataset(out, drop_last_placeholder=False)
    assert dataset[0].image(dataset.cameras[0], 0).shape == (16, 16, 3)


def test_convert_joins_the_vectors_of_rlds(tmp_path: Path) -> None:
    source, out = rlds(tmp_path / "toy/1.0.0"), tmp_path / "out"
    words = ["--fps", "5", "--state-keys", "observation/state", "--action-keys", "action"]
    assert main(["data", "convert", str(source), str(out), *words]) == 0
    assert open_dataset(out).fps == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["look", "."], "unknown action 'look'; valid names: convert"),
        (["inspect", "nowhere"], "found nothing at nowhere"),
        (["inspect", "{logs}", "train.epochs=1"], "unexpected 'train.epochs=1'"),
        (["convert", "{logs}", "{logs}/out"], "expected OUT beside the dataset"),
        (["convert", "{logs}", "{logs}_out", "--fps", "0"], "expected steps a second above 0"),
        (["convert", "{logs}", "{logs}_out", "--fps", "inf"], "expected steps a second above 0"),
        (["inspect", "{logs}", "--rate", "inf"], "expected steps a second above 0"),
        (["convert", "{logs}", "{logs}_out", "--size", "3"], "expected 8 to 4096 pixels, found 3"),
        (["convert", "{logs}", "{logs}_out", "--max-damaged", "0"], "expected at most 0 damaged"),
        (["convert", "{logs}", "{logs}_out", "--cameras", "left"], "found 'left'"),
    ],
)
def test_mistakes_end_with_a_sentence(
    logs: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    bad = logs / "episode_0001_b/episode_data.tfrecord"
    rewrite(bad, {3: {"action": None}})
    assert main(["data", *(word.format(logs=logs) for word in words)]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path(f"{logs}_out").exists()


def test_long_work_tells_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Ticker("episodes read", every=60)(1, 2)
    assert capsys.readouterr().err == ""
    Ticker("episodes read", every=0)(1200, 2000)
    assert capsys.readouterr().err == "tatara: 1,200 of 2,000 episodes read\n"


@pytest.mark.parametrize(
    ("words", "option"),
    [(["data", "inspect"], "--color-order"), (["eval", "gsm8k"], "--shots")],
)
def test_the_help_of_a_part_is_its_own(
    capsys: pytest.CaptureFixture[str], words: list[str], option: str
) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert option in capsys.readouterr().out
