"""Faults of datasets that public reports led to, by the ids of their cases: what `tatara data
inspect` and `tatara check --deep` say of each, and what training would see."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import crane_cases, lerobot_cases, rlds_cases
from workloads.cli import main
from workloads.data import tf_example, tfrecord
from workloads.data.robot import open_dataset
from workloads.data.robot.review import missing_camera, remarks
from workloads.errors import UserError

pytestmark = pytest.mark.unit
PROFILE = "profiles/recipes/vla-tiny.yaml"
CASES = {**lerobot_cases.CASES, **rlds_cases.CASES, **crane_cases.CASES}
LFS = "a Git LFS pointer in place of the file: run git lfs pull"
DROID = ["observation/joint_position", "observation/gripper_position"]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a case's dataset and gives back its folder."""
    monkeypatch.setenv("TATARA_CACHE", str(tmp_path / "cache"))

    def write(case: str) -> Path:
        CASES[case](tmp_path / case)
        return tmp_path / case

    return write


# case: exit codes of inspect and of check, texts in what inspect says, texts in what check says
SAID: dict[str, tuple[int, int, tuple[str, ...], tuple[str, ...]]] = {
    "V-A04": (0, 0, ("damage: none",), ()),
    "V-A05": (0, 0, ("damage: none",), ()),
    "V-A06": (0, 0, ("damage: none",), ()),
    "V-A07": (0, 0, ("says 30 Hz", "say 10 Hz"), ("says 30 Hz", "say 10 Hz")),
    "V-A09": (0, 0, ("2 of 2 episodes have several instructions",), ("several instructions",)),
    "V-A10": (1, 2, ("100 of 120", "100 steps lost"), ("100 of 120",)),
    "V-A11": (0, 0, ("camera top: 2", "images.depth (no colour"), ("cameras used: top;", "depth")),
    "V-A13": (0, 0, ("damage: none", "camera top: 2"), ()),
    "V-A14": (1, 2, (LFS, "16 of 16"), (LFS,)),
    "V-A15": (1, 2, (LFS, "damage: 2 bad_image"), (LFS,)),
    "V-A16": (2, 2, (f"tasks.parquet: expected a parquet file, found {LFS}",), (LFS,)),
    "V-A18": (2, 2, ("expected a column videos/observation.images.top/chunk_index",), ()),
    "V-A20": (0, 0, ("2 episodes, 16 steps", "states: none"), ()),
    "V-A21": (1, 2, ("17 frames for 20 rows", "damage: 2 bad_image"), ("17 frames for 20 rows",)),
    "V-A22": (0, 0, ("q99", "action x6 hardly moves", "data.action_mask"), ("x6 hardly moves",)),
    "V-A25": (1, 2, ("episode 1 has states and actions of (7, 7)",), ("(7, 7), expected (6, 6)",)),
    "V-A26": (1, 2, ("expected a camera", "no camera"), ("expected a camera",)),
    "V-A27": (0, 0, ("main_0", "main_5"), ()),
    "V-A28": (0, 0, ("action x5 jumps between -pi and pi",), ("x5 jumps between -pi and pi",)),
    "V-A30": (0, 0, ("camera wrist", "camera front"), ("cameras used: wrist (left out: front)",)),
    "V-A31": (1, 2, ("31 rows of episode 2 expected, 0 found", "31 of 64"), ("31 of 64",)),
    "V-A32": (0, 0, ("12 said, 20 found",), ("12 said, 20 found",)),
    "V-B01": (1, 2, ("in 4 episodes: a default stands in", "task_description"), ("4 of 4",)),
    "V-B04": (1, 2, ("2 of 6 episodes lost", "24 of 72"), ("2 of 6 episodes lost",)),
    "V-B05": (1, 2, ("not a readable array_record file",), ("array_record",)),
    "V-B06": (1, 2, ("compressed with gzip; unpack it: mv ",), ("&& gunzip ",)),
    "V-B07": (2, 2, ("written by an old tensorflow_datasets",), ("old tensorflow_datasets",)),
    "V-B08": (1, 2, ("in 4 episodes: a default stands in",), ("set data.instruction to a text",)),
    "V-B12": (0, 0, ("4 episodes, 48 steps", "states: none"), ()),
    "V-B14": (0, 0, ("4 of 4 episodes have several instructions",), ("several instructions",)),
    "V-E04": (0, 0, ("camera primary: 4 episodes, 64 x 48",), ()),
    "V-E06": (2, 2, ("action, a class of 5",), ("a class of 5",)),
    "V-F02": (0, 0, ("3 episodes, 39 steps",), ()),
    "V-F03": (0, 0, ("camera primary: 3 episodes, 64 x 48",), ()),
    "V-F06": (0, 0, ("3 episodes, 39 steps",), ()),
    "V-F07": (1, 2, ("compressed with gzip; unpack it: mv ",), ("&& gunzip ",)),
    "V-F08": (0, 0, ("are these degrees?",), ("are these degrees?",)),
}


@pytest.mark.parametrize("case", SAID)
def test_inspect_and_check_say_what_is_in_the_data(
    build: Any, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    inspected, checked, in_inspect, in_check = SAID[case]
    root = build(case)
    assert main(["data", "inspect", str(root)]) == inspected
    said = "".join(capsys.readouterr())
    assert [text for text in in_inspect if text not in said] == []
    assert main(["check", "--deep", PROFILE, f"data.source={root}"]) == checked
    said = "".join(capsys.readouterr())
    assert [text for text in in_check if text not in said] == []


@pytest.mark.parametrize("case", ["V-A04", "V-A05", "V-A06", "V-A13", "V-A07"])
def test_every_step_sees_its_own_frame(build: Any, case: str) -> None:
    dataset = open_dataset(build(case), drop_last_placeholder=False)
    for number, episode in enumerate(dataset):
        found = [lerobot_cases.marks(episode.image("top", t)) for t in range(len(episode))]
        assert found == [(t, number) for t in range(len(episode))]


def test_more_frames_than_rows_are_found_by_their_times_or_refused(tmp_path: Path) -> None:
    """V-A05's kind: episodes cut out of the meta data leave frames behind that belong to no row."""
    from tests.support.lerobot_cases import TOP_VIDEO, v3

    v3(tmp_path / "cut", ((20, 20, 20),), TOP_VIDEO, change=lambda rows: [rows[0], rows[2]])
    dataset = open_dataset(tmp_path / "cut", drop_last_placeholder=False)
    listed, said = dataset.notes
    assert "the list of episodes has 2 and 40" in listed
    assert said.startswith("1 videos have more frames than rows, which are found by their times")
    assert said.endswith("60 frames for 40 rows")
    found = [lerobot_cases.marks(dataset[1].image("top", t)) for t in range(20)]
    assert found == [(t, 2) for t in range(20)]
    v3(tmp_path / "off", ((20, 20, 20),), TOP_VIDEO, 0.04, lambda rows: [rows[0], rows[2]])
    dataset = open_dataset(tmp_path / "off", damage_budget=1000)
    (damage,) = dataset.damage
    assert "over a quarter of a frame" in damage.cause and damage.lost == 40


def test_instructions_that_were_recorded_elsewhere(build: Any) -> None:
    """V-B01, V-B11: by the option, and by themselves."""
    dataset = open_dataset(build("V-B01"), instruction_key="task_description")
    assert {episode.instruction for episode in dataset} == {"stack the red block"}
    dataset = open_dataset(build("V-B11"), state_keys=DROID)
    assert {episode.instruction for episode in dataset} == {"put the marker in the cup"}
    assert dataset.origins == {"recorded": 4}


@pytest.mark.parametrize("case", ["V-A09", "V-B14"])
def test_every_step_has_its_own_instruction(build: Any, case: str) -> None:
    episode = open_dataset(build(case))[0]
    first, half = episode.instruction_at(0), {"V-A09": 10, "V-B14": 6}[case]
    assert first == "open the drawer" and episode.instruction_at(half - 1) == first
    assert episode.instruction_at(half) in ("take the cup", "put the block in")
    assert episode.instruction_at(len(episode) - 1) == episode.instruction_at(half)


def test_an_instruction_that_was_chosen_is_taken(
    build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """V-B08: with data.instruction nothing stands in unasked."""
    root = build("V-B08")
    words = [f"data.source={root}", "data.instruction=open the lid"]
    assert main(["check", "--deep", PROFILE, *words]) == 0
    assert "'open the lid'" in capsys.readouterr().out
    assert main(["data", "inspect", str(root), "--instruction", "open the lid"]) == 0


def test_a_map_translates_instructions_and_numbers(
    build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = build("V-B14")
    dataset = open_dataset(root, instruction_map={"take the cup": "grasp the mug"})
    assert dataset[0].instructions == ("open the drawer", "grasp the mug")
    words = ["--instruction-map", "take the mug=grasp it"]
    assert main(["data", "inspect", str(root), *words]) == 2
    assert "found 'take the mug'; there are: " in capsys.readouterr().err
    root = build("V-E06")
    words = {"action_keys": ["observation/state"], "instruction_key": "action"}
    names = {str(number): f"do task {number}" for number in range(5)}
    assert open_dataset(root, instruction_map=names, **words)[0].instruction_at(3) == "do task 3"
    del names["4"]
    with pytest.raises(Exception, match="expected a text for '4'"):
        _ = open_dataset(root, instruction_map=names, **words)[0]


def test_masked_dimensions_have_to_fit_their_tokens(
    build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """V-A23: 100 would come back as 0.996."""
    root = build("V-A23")
    mask = "data.action_mask=[true,true,true,true,true,true,false]"
    assert main(["check", "--deep", PROFILE, f"data.source={root}", mask]) == 2
    said = capsys.readouterr().out
    assert "expected action x6, which is not normalised, within -1 to 1" in said
    oft = ["action_head.kind=oft", "model.attention=sdpa"]
    discrete = [*oft, "action_head.decode=discrete"]
    assert main(["check", "--deep", PROFILE, f"data.source={root}", mask, *discrete]) == 2
    assert main(["check", "--deep", PROFILE, f"data.source={root}", mask, *oft]) == 0


def test_only_a_head_that_takes_the_state_needs_one(
    build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """V-A20, V-B12."""
    root = build("V-B12")
    assert len(open_dataset(root, state_keys=["action"])[0]) == 12, "no step is a placeholder"
    words = [PROFILE, f"data.source={root}", "action_head.kind=oft"]
    assert main(["check", "--deep", *words]) == 2
    assert "expected states for action_head.proprio" in capsys.readouterr().out
    assert main(["check", "--deep", *words, "action_head.proprio=false"]) == 0


def test_vectors_and_pixels_in_other_forms_are_what_they_were(build: Any) -> None:
    """V-E04, V-F02, V-F03: the same numbers as from the usual form."""
    episode = open_dataset(build("V-F02"))[0]
    assert episode.states.shape == (13, 8) and np.array_equal(
        episode.actions[:-1], episode.states[1:]
    )
    assert not open_dataset(build("V-F03"))[0].image("primary", 3).any()
    episode = open_dataset(build("V-E04"))[0]
    assert [int(episode.image("primary", t).mean()) for t in (0, 5, 11)] == [0, 40, 88]


def test_two_rates_are_no_rate_to_write(build: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """V-A07: convert wants to be told which."""
    root = build("V-A07")
    out = root.parent / "out"
    assert main(["data", "convert", str(root), str(out)]) == 2
    assert "30 Hz" in (said := capsys.readouterr().err) and "10 Hz" in said and "--fps" in said
    assert not out.exists()
    assert main(["data", "convert", str(root), str(out), "--fps", "10"]) == 0
    assert open_dataset(out).fps == 10


def test_conversion_keeps_the_names_of_joints(build: Any) -> None:
    """V-A27."""
    root = build("V-A27")
    out = root.parent / "out"
    assert main(["data", "convert", str(root), str(out)]) == 0
    again = open_dataset(out)
    assert again.action_names == again.state_names == tuple(f"main_{n}" for n in range(6))


def test_conversion_never_writes_a_default_as_recorded(
    build: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """V-B01: the text that stands in is asked for."""
    root = build("V-B01")
    out = root.parent / "out"
    assert main(["data", "convert", str(root), str(out), "--fps", "5"]) == 2
    assert "expected an instruction in every episode" in capsys.readouterr().err
    words = ["--fps", "5", "--instruction", "stack it"]
    assert main(["data", "convert", str(root), str(out), *words]) == 0
    assert open_dataset(out)[0].said.origin == "recorded"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["r_0.db3"], "r_0.db3 without a metadata.yaml beside it"),
        (["notes.txt", "video.mp4"], "1 x .txt, 1 x .mp4"),
        ([], "an empty folder"),
    ],
)
def test_a_folder_of_something_else_is_named(tmp_path: Path, files: list[str], found: str) -> None:
    """V-G01, V-G02: what lies there, and what is read."""
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(Exception, match=f"{found}.*what is read: meta/info.json"):
        open_dataset(tmp_path)


def test_an_episode_folder_without_its_episode_is_named(tmp_path: Path) -> None:
    for name in ("episode_0000_20251210_090000", "episode_0001_20251210_090130"):
        shutil.copytree(Path("tests/golden/crane_x7/v2") / name, tmp_path / name)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1
    assert dataset.unused["episode_0001_20251210_090130"].endswith("without an episode file")


def test_shards_of_two_writings_are_told_apart(tmp_path: Path) -> None:
    """A lost file's kind: the count in a shard's name says which ones belong together."""
    folder = rlds_cases.write(tmp_path, rlds_cases.USUAL, rlds_cases.usual(4), shards=2)
    stale = folder / "toy-train.tfrecord-00000-of-00003"
    stale.write_bytes((folder / "toy-train.tfrecord-00000-of-00002").read_bytes())
    with pytest.raises(UserError, match="of-00002 and toy-train.tfrecord-00000-of-00003; one of"):
        open_dataset(tmp_path)


def test_an_episode_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    """It would be trained on and held out at once."""
    lerobot_cases.v2(tmp_path, (10, 10, 10))
    file = tmp_path / "meta/episodes.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(UserError, match="expected each episode once, found episode 1 twice"):
        open_dataset(tmp_path)


def test_a_task_of_two_texts_is_refused(tmp_path: Path) -> None:
    """A lost instruction's kind: the later text would stand for both."""
    lerobot_cases.v2(tmp_path, (10, 10), tasks=("pick", "place"))
    file = tmp_path / "meta/tasks.jsonl"
    file.write_text(file.read_text().replace('"task_index": 1', '"task_index": 0'))
    with pytest.raises(UserError, match="one text for task_index 0, found 'pick' and 'place'"):
        open_dataset(tmp_path)


def test_a_camera_that_some_episodes_lack_is_named(tmp_path: Path) -> None:
    """V-A30's kind: what is left out is said, whatever the reason."""
    crane_cases.write(tmp_path)
    file = tmp_path / "episode_0001/episode_data.tfrecord"
    states = np.zeros((crane_cases.STEPS, 8), "f4")
    steps = [crane_cases.usual(t, states) for t in range(crane_cases.STEPS)]
    for step in steps:
        step["observation/image_wrist"] = step.pop("observation/image")
    tfrecord.write(file, [tf_example.build(step) for step in steps])
    dataset = open_dataset(tmp_path)
    lost = "camera primary is not in 1 of 3 episodes, the first episode_0001"
    assert dataset.cameras == () and lost in str(missing_camera(dataset))
    shutil.rmtree(tmp_path / "episode_0002")
    assert any(
        remark.text == f"{lost.replace('3', '2')}: it is not used"
        for remark in remarks(open_dataset(tmp_path))
    )
