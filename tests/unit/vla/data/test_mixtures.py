"""Mixtures of public datasets: actions made as published, cameras by common names, weights."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import rlds_cases
from tests.support.rlds_cases import IMAGE, STEPS, TEXT, nested, png, tensor
from workloads.config.merge import resolve
from workloads.data.action_parts import ActionPart
from workloads.data.robot import open_dataset
from workloads.data.robot.transform import CHANGES, transformed
from workloads.errors import UserError
from workloads.vla.check import deep, shallow
from workloads.vla.config import Source, VlaConfig
from workloads.vla.data.prepare import Sources, open_sources
from workloads.vla.mixtures import dataset_settings, mixtures

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[4]
BRIDGE = ROOT / "profiles/recipes/policy-oxe-bridge.yaml"


def config_of(root: Path, *words: str) -> VlaConfig:
    config: VlaConfig = resolve(
        BRIDGE, {}, [f"data.source={root}", "data.window=4", "action_head.chunk=2", *words]
    )[0]
    return config


def opened(root: Path, *words: str) -> Sources:
    return open_sources(config_of(root, *words), None, lambda: None)


def episode(number: int, features: dict[str, Any]) -> dict[str, Any]:
    """An episode's record: images under their keys, the rest as given."""
    frames = [png(number, step) for step in range(STEPS)]
    return {f"steps/{key}": frames if value is IMAGE else value for key, value in features.items()}


def texts(text: str) -> list[bytes]:
    return [text.encode()] * STEPS


def bridge(root: Path, name: str = "bridge_orig", spoken: int = 3) -> list[dict[str, np.ndarray]]:
    """BridgeData V2 in small; one episode more has no instruction. What was recorded of each."""
    random = np.random.default_rng(5)
    steps = {
        "observation": nested({"image_0": IMAGE, "image_1": IMAGE, "state": tensor([7])}),
        "action": tensor([7]),
        "language_instruction": TEXT,
    }
    recorded = [
        {
            "states": random.normal(size=(STEPS, 7)).astype("f4"),
            "actions": random.uniform(0, 1, size=(STEPS, 7)).astype("f4"),
        }
        for _ in range(spoken + 1)
    ]
    episodes = [
        episode(
            number,
            {
                "observation/image_0": IMAGE,
                "observation/image_1": IMAGE,
                "observation/state": own["states"].ravel(),
                "action": own["actions"].ravel(),
                "language_instruction": texts("put the pot in the sink" if number < spoken else ""),
            },
        )
        for number, own in enumerate(recorded)
    ]
    rlds_cases.write(root / name, steps, episodes)
    return recorded


def rt_1(root: Path, commands: list[float]) -> np.ndarray:
    """RT-1 in small, its gripper commanded so. The movement of each step, float32 [STEPS, 6]."""
    move = np.random.default_rng(6).normal(size=(STEPS, 6)).astype("f4")
    steps = {
        "observation": nested({"image": IMAGE, "natural_language_instruction": TEXT}),
        "action": nested(
            {
                "world_vector": tensor([3]),
                "rotation_delta": tensor([3]),
                "gripper_closedness_action": tensor([1]),
            }
        ),
    }
    record = episode(
        0,
        {
            "observation/image": IMAGE,
            "observation/natural_language_instruction": texts("pick the can"),
            "action/world_vector": move[:, :3].ravel(),
            "action/rotation_delta": move[:, 3:].ravel(),
            "action/gripper_closedness_action": np.array(commands, "f4"),
        },
    )
    rlds_cases.write(root / "fractal20220817_data", steps, [record, record])
    return move


def test_every_dataset_of_every_mixture_can_be_asked_for() -> None:
    for weights in mixtures().values():
        for name, weight in weights.items():
            settings = dataset_settings(name, Path("data"))
            source = Source.model_validate(settings | {"weight": weight})
            assert source.name == name and Path(source.source).parts[0] == "data"
    assert len(mixtures()["oxe_magic_soup"]) == 23
    assert mixtures()["oxe_magic_soup"]["jaco_play"] == 1
    assert mixtures()["rtx"]["jaco_play"] == 2


def test_bridge_moves_by_what_was_reached(tmp_path: Path) -> None:
    """Movement from one reached pose to the next, the gripper as the end it reaches; the first step
    and the last are left out, and so are episodes without an instruction."""
    recorded = bridge(tmp_path)
    sources = opened(tmp_path, "data.eval_share=0")
    part = sources.train[0]
    assert part.episodes == (0, 1, 2) and part.cameras == ("primary",)
    for number in part.episodes:
        seen, own = part.dataset[number], recorded[number]
        assert seen.rows.tolist() == list(range(1, STEPS - 1))
        moved = own["states"][2:, :6] - own["states"][1:-1, :6]
        assert np.array_equal(seen.actions[:, :6], moved)
        assert np.array_equal(seen.actions[:, 6], next_end(own["actions"][1:, 6])[:-1])
        assert np.array_equal(seen.image("primary", 0), part.dataset.episode(number).image("0", 1))
    said = "\n".join(sources.lines)
    assert "cameras used: primary (left out: secondary)" in said
    assert "'put the pot in the sink'; 1 episodes without one left out" in said
    assert part.dataset.fps == 5
    table = sources.statistics["bridge_orig"]
    assert table["num_trajectories"] == 3 and len(table["action"]["q01"]) == 7


def next_end(values: np.ndarray) -> np.ndarray:
    """What the gripper reaches next, the slow way."""
    ends, latest = np.empty_like(values), float(values[-1])
    for step in range(len(values) - 1, -1, -1):
        if values[step] > 0.95 or values[step] < 0.05:
            latest = float(values[step] > 0.95)
        ends[step] = latest
    return ends


def test_a_mixture_has_shares_and_statistics_of_each(tmp_path: Path) -> None:
    bridge(tmp_path, "bridge_dataset")  # the name that its own site gives it
    move = rt_1(tmp_path, [0, 0, 1, 0, 0, 0, -1, 0, 0, 1, 0, 0])
    sources = opened(tmp_path, "data.mixture=bridge_rt_1", "data.eval_share=0")
    assert [part.name for part in sources.train] == ["bridge_orig", "fractal20220817_data"]
    counts = [len(part.places) for part in sources.train]
    for part, count in zip(sources.train, counts, strict=True):
        share = f"{part.name}: weight 1 makes {count / sum(counts):.1%} of the samples"
        assert share in sources.lines
    google = sources.train[1].dataset[0]
    assert np.array_equal(google.actions[:, :6], move)
    assert google.actions[:, 6].tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert google.instruction == "pick the can"
    assert list(sources.statistics) == ["bridge_orig", "fractal20220817_data"]


def test_language_table_spells_its_instructions(tmp_path: Path) -> None:
    """x and y alone, an open gripper, and texts as numbers with zeros behind them."""
    steps = {
        "observation": nested({"rgb": IMAGE, "instruction": tensor([32], "int32")}),
        "action": tensor([2]),
    }
    spelled = np.zeros((STEPS, 32), np.int64)
    text = b"push the blue cube"
    spelled[:, : len(text)] = list(text)
    move = np.random.default_rng(7).normal(size=(STEPS, 2)).astype("f4")
    record = episode(
        0,
        {
            "observation/rgb": IMAGE,
            "observation/instruction": spelled.ravel(),
            "action": move.ravel(),
        },
    )
    rlds_cases.write(tmp_path, steps, [record])
    settings = dataset_settings("language_table", tmp_path)
    source = Source.model_validate(settings)
    dataset = open_dataset(
        tmp_path,
        instruction_key=source.instruction_key,
        action_parts=tuple(ActionPart(**part.model_dump()) for part in source.action_parts),
        camera_names=source.camera_names,
    )
    assert dataset[0].instruction == "push the blue cube"
    assert dataset.cameras == ("primary",)
    assert np.array_equal(dataset[0].actions[:, :2], move)
    assert dataset[0].actions[0, 2:].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("commands", "opened"),
    [
        ([0, 0, 0], [1, 1, 1]),  # never commanded: open
        ([0, 1, 0], [1, 0, 0]),
        ([0, -1, 0], [0, 1, 1]),
        ([0.05, 1, -0.05, -1], [1, 0, 0, 1]),
    ],
)
def test_relative_commands_become_open_or_closed(
    commands: list[float], opened: list[float]
) -> None:
    values = np.array(commands, np.float32)[:, None]
    assert CHANGES["absolute"](values)[:, 0].tolist() == opened


@pytest.mark.parametrize("values", [[0.5], [0.2, 1, 0.5, 0, 0.6], [1, 0.5, 0.4]])
def test_a_gripper_on_its_way_counts_as_where_it_gets(values: list[float]) -> None:
    array = np.array(values, np.float32)[:, None]
    assert np.array_equal(CHANGES["binary"](array)[:, 0], next_end(array[:, 0]))


@pytest.mark.parametrize("pitch", [-math.pi / 2, -1.2, 0, 0.4, math.pi / 2])
def test_quaternions_become_the_same_rotation_as_angles(pitch: float) -> None:
    """The matrix of the angles is that of the quaternion, upright ones included."""
    for roll, yaw in ((0.3, -2.0), (-3.0, 0.0), (1.5, 3.1)):
        half = np.array([roll, pitch, yaw]) / 2
        (sx, sy, sz), (cx, cy, cz) = np.sin(half), np.cos(half)
        quaternion = np.array(
            [
                [
                    sx * cy * cz - cx * sy * sz,
                    cx * sy * cz + sx * cy * sz,
                    cx * cy * sz - sx * sy * cz,
                    cx * cy * cz + sx * sy * sz,
                ]
            ],
            np.float64,
        )
        found = CHANGES["euler"](quaternion)[0]
        assert np.allclose(matrix(found), matrix([roll, pitch, yaw]), atol=2e-3)


def matrix(angles: Any) -> np.ndarray:
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(z @ y @ x)


def test_nobody_knows_where_an_arm_went_across_a_gap(tmp_path: Path) -> None:
    bridge(tmp_path)
    dataset = open_dataset(tmp_path / "bridge_orig")
    whole = dataset[0]
    kept = np.ones(len(whole), bool)
    kept[5] = False
    part = ActionPart("state", (0, 1), ("moved",))
    seen = transformed(whole.take(kept), [part], 0)
    assert seen.rows.tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10]


def test_missing_datasets_are_named(tmp_path: Path) -> None:
    bridge(tmp_path)
    config = config_of(tmp_path, "data.mixture=rtx", "data.mixture_without=[kuka]")
    with pytest.raises(UserError, match="expected 9 datasets in .* found 1; missing: fractal"):
        open_sources(config, None, lambda: None)
    findings = [item for item in shallow(config, {}) if item.is_bad and "data" in item.name]
    assert [item.name for item in findings] == ["data.mixture"]
    # What is printed to type works as it is printed.
    without = findings[0].found.split("data.mixture_without='")[1].removesuffix("'")
    assert json.loads(without)[0] == "kuka"
    config = config_of(tmp_path, "data.mixture=rtx", f"data.mixture_without={without}")
    assert len(open_sources(config, None, lambda: None).train) == 1


def test_mistakes_in_a_mixture_are_named(tmp_path: Path) -> None:
    cases = {
        "data.mixture=rt1": "did you mean 'rt_1'",
        "data.mixture_without=[kuka]": "bridge has no 'kuka'",
        "data.mixture_without=[bridge_orig]": "expected to leave a dataset",
        "data.split=val": "split: of one dataset",
        "data.skip_first=2": "skip_first: of one dataset",
    }
    for word, text in cases.items():
        with pytest.raises(UserError, match=text):
            config_of(tmp_path, word)
    recorded = {"data.mixture": None, "data.source": str(tmp_path / "bridge_orig")}
    bridge(tmp_path)
    wrong = {
        "data.camera_names": ({"primary": "image_7"}, "cameras that it has, 0, 1, found 'image_7'"),
        "data.action_parts": ([{"numbers": [7]}], "expected a number 7 of each action"),
    }
    for name, (value, text) in wrong.items():
        config = resolve(BRIDGE, {}, recorded | {"data.cameras": [], name: value})[0]
        found = [item.found for item in deep(config, {}) if item.level == "error"]
        assert len(found) == 1 and text in found[0], found
