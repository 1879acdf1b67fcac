"""The simulated arm, table and camera, and the demonstrations made with them."""

from pathlib import Path

import numpy as np
import pytest

from workloads.cli import main
from workloads.data.robot import open_dataset
from workloads.data.robot.crane_x7.tfrecords import JOINT_LIMITS
from workloads.vla.reach import arm
from workloads.vla.reach.closed_loop import REACHED, STEPS, roll_out
from workloads.vla.reach.demonstrations import CAMERA, generate
from workloads.vla.reach.demonstrations import STEPS as RECORDED
from workloads.vla.reach.expert import command, demonstration
from workloads.vla.reach.render import SIZE, SceneCamera, project
from workloads.vla.reach.scene import APART, COLOURS, CUBE, CUBES, instruction, scene

pytestmark = pytest.mark.unit


def quiet(done: int, total: int) -> None:
    pass


def test_the_arm_at_zero_stands_upright() -> None:
    height = arm.SHOULDER_HEIGHT + arm.UPPER_ARM + arm.FOREARM + arm.HAND
    assert arm.fingertip(np.zeros(8)) == pytest.approx([0, 0, height])


@pytest.mark.parametrize(
    ("joint", "angle", "moved"),
    [(0, 0.5, False), (1, -0.5, True), (3, -0.5, True), (5, -0.5, True), (7, 1.0, False)],
)
def test_bending_joints_lean_the_upright_arm_forward(joint: int, angle: float, moved: bool) -> None:
    joints = np.zeros(8)
    joints[joint] = angle
    tip = arm.fingertip(joints)
    assert (tip[0] > 0.01) == moved
    assert tip[1] == pytest.approx(0)


def test_a_turn_of_the_base_turns_the_fingertip_about_the_upright_axis() -> None:
    joints = arm.reaching(np.array([0.3, 0.0, 0.1]))
    joints[0] += np.pi / 2
    assert arm.fingertip(joints) == pytest.approx([0.0, 0.3, 0.1])


def test_links_keep_their_lengths_in_any_pose() -> None:
    low, high = np.asarray(JOINT_LIMITS).T
    joints = np.random.default_rng(0).uniform(low, high, (200, 8))
    lengths = np.linalg.norm(np.diff(arm.points(joints), axis=1), axis=2)
    assert lengths == pytest.approx(np.tile([arm.UPPER_ARM, arm.FOREARM, arm.HAND], (200, 1)))


def test_reaching_undoes_fingertip_within_the_limits() -> None:
    goals = np.stack([scene(3, number, "evaluation").goal for number in range(300)])
    joints = arm.reaching(goals)
    assert arm.fingertip(joints) == pytest.approx(goals)
    assert arm.within_limits(joints) == pytest.approx(joints)


def test_the_arm_neither_leaves_its_limits_nor_jumps() -> None:
    far = np.full(8, 9.0)
    joints = arm.HOME.copy()
    for _ in range(20):
        after = arm.moved(joints, far)
        assert (np.abs(after - joints) <= arm.MAX_TURN + 1e-12).all()
        joints = after
    assert joints == pytest.approx([high for _, high in JOINT_LIMITS])


def test_scenes_follow_from_seed_and_number_and_purpose() -> None:
    def key(*arguments: object) -> tuple[object, ...]:
        one = scene(*arguments)  # type: ignore[arg-type]
        return one.colours, one.places.tobytes(), one.start.tobytes()

    assert key(1, 2, "evaluation") == key(1, 2, "evaluation")
    others = [(1, 3, "evaluation"), (2, 2, "evaluation"), (1, 2, "demonstrations")]
    assert all(key(*other) != key(1, 2, "evaluation") for other in others)


def test_cubes_are_apart_and_every_colour_is_asked_for() -> None:
    scenes = [scene(0, number, "evaluation") for number in range(200)]
    for item in scenes:
        gaps = np.linalg.norm(item.places[:, None] - item.places[None], axis=2)
        assert gaps[~np.eye(CUBES, dtype=bool)].min() >= APART > 2 * REACHED
        assert len(set(item.colours)) == CUBES
        assert item.colours[0] in item.instruction
    assert {item.instruction for item in scenes} == {instruction(colour) for colour in COLOURS}


def test_the_expert_reaches_every_cube_in_time() -> None:
    scenes = [scene(5, number, "evaluation") for number in range(200)]
    goals = np.stack([item.goal for item in scenes])
    found = roll_out(scenes, lambda pictures, told, joints: command(joints, goals)[:, None])
    assert found.won.all()


def test_a_policy_that_stands_still_reaches_nothing() -> None:
    scenes = [scene(5, number, "evaluation") for number in range(100)]
    found = roll_out(scenes, lambda pictures, told, joints: joints[:, None])
    assert found.won.sum() <= 3


def test_chunks_are_carried_out_whole_and_the_policy_sees_the_present() -> None:
    scenes = [scene(0, number, "evaluation") for number in range(2)]
    asked: list[np.ndarray] = []

    def act(pictures: np.ndarray, told: object, states: np.ndarray) -> np.ndarray:
        asked.append(states)
        assert np.array_equal(pictures[1], SceneCamera(scenes[1]).image(states[1].astype(float)))
        return np.stack([states + 0.01 * (at + 1) for at in range(4)], axis=1)

    roll_out(scenes, act)
    assert len(asked) == STEPS // 4
    assert asked[1] == pytest.approx(asked[0] + 0.04, abs=1e-6)


def test_pictures_show_every_cube_and_the_fingertip_where_they_are() -> None:
    for number in range(20):
        one = scene(0, number, "evaluation")
        picture = SceneCamera(one).image(one.start).astype(int)
        pixels, _ = project(np.column_stack([one.places, np.full(CUBES, CUBE)]), SIZE)
        tip, _ = project(arm.fingertip(one.start), SIZE)
        assert ((tip > 1) & (tip < SIZE - 1)).all()
        for (right, down), colour in zip(pixels, one.colours, strict=True):
            around = picture[int(down) - 1 : int(down) + 2, int(right) - 1 : int(right) + 2]
            near = np.abs(around - COLOURS[colour]).sum(axis=2).min()
            hidden = np.linalg.norm(tip - (right, down)) < 8
            assert near < 60 or hidden, (number, colour, near)


def test_the_arm_shows_in_the_picture() -> None:
    camera = SceneCamera(scene(0, 0, "evaluation"))
    first, second = (camera.image(arm.reaching(np.array([0.3, y, 0.1]))) for y in (-0.1, 0.1))
    assert np.abs(first.astype(int) - second).max() > 60


def test_demonstrations_are_crane_x7_recordings(tmp_path: Path) -> None:
    folder = tmp_path / "reach"
    assert generate(folder, 5, 3, quiet)
    dataset = open_dataset(folder)
    assert len(dataset) == 5
    assert not dataset.verify()
    for number, episode in enumerate(dataset):
        one = scene(3, number, "demonstrations")
        joints = demonstration(one, RECORDED).astype(np.float32)
        assert len(episode) == RECORDED
        assert np.array_equal(episode.states, joints[:-1])
        assert np.array_equal(episode.actions, joints[1:])
        assert episode.instruction == one.instruction
        seen, drawn = episode.image(CAMERA, 2), SceneCamera(one).image(joints[2].astype(float))
        assert np.abs(seen.astype(int) - drawn).mean() < 8


def test_the_same_demonstrations_are_written_once(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert generate(first, 3, 0, quiet)
    assert generate(second, 3, 0, quiet)
    files = sorted(path.relative_to(first) for path in first.rglob("*.tfrecord"))
    assert len(files) == 3
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)
    assert not generate(first, 3, 0, quiet)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "reach"
    assert main(["data", "generate", "reach", str(folder), "--episodes", "2"]) == 0
    assert main(["data", "generate", "reach", str(folder), "--episodes", "2"]) == 0
    assert "there already" in capsys.readouterr().out
    assert main(["data", "generate", "reach", str(folder), "--episodes", "3"]) == 2
    assert "expected an empty folder, found files in" in capsys.readouterr().err
    assert main(["data", "generate", "reach", str(tmp_path / "x"), "--episodes", "0"]) == 2
    assert "--episodes: expected at least 1, found 0" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["data", "generate", "reach", str(tmp_path / "file" / "reach")]) == 2
    assert "expected to write a dataset" in capsys.readouterr().err
