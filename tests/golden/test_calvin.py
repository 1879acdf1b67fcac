"""CALVIN's frames, spans and windows are those that RoboVLMs' own loader gives."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from workloads.data.robot import open_dataset
from workloads.data.windows import WindowOptions, Windows
from workloads.vla.robovlms.actions import normalise

pytestmark = pytest.mark.golden
HERE = Path(__file__).parent / "calvin"
SAMPLES = json.loads((HERE / "expected_samples.json").read_text())


def test_frames() -> None:
    dataset = open_dataset(HERE / "training")
    assert dataset.format == "calvin" and dataset.cameras == ("static", "gripper")
    assert [(episode.instruction, len(episode)) for episode in dataset] == [
        ("push the red block to the left side", 31),
        ("open the drawer slowly", 28),
        ("turn the light bulb on", 21),
    ]
    expected = json.loads((HERE / "expected_frames.json").read_text())
    seen = set()
    for episode in dataset:
        for step, row in enumerate(episode.rows.tolist()):
            facts = expected.get(f"episode_{row:07d}.npz")
            if facts is None:
                continue
            seen.add(row)
            for camera in dataset.cameras:
                digest = hashlib.sha256(episode.image(camera, step).tobytes()).hexdigest()
                assert digest == facts[f"rgb_{camera}_sha256"]
            assert np.array_equal(episode.states[step], np.float32(facts["robot_obs"]))
            assert np.array_equal(episode.actions[step], np.float32(facts["rel_actions"]))
    assert seen


@pytest.mark.parametrize("name", SAMPLES)
def test_windows(name: str) -> None:
    facts = SAMPLES[name]
    options = WindowOptions(facts["window_size"], facts["fwd_pred_next_n"], facts["skip_frames"])
    windows = Windows(open_dataset(HERE / "training"), options)
    assert len(windows) == facts["num_samples"] == len(facts["samples"])
    for found, expected in zip(windows, facts["samples"], strict=True):
        assert found.rows.tolist() == expected["image_frames"]
        assert found.rows[0] == expected["start_frame"] and found.instruction == expected["lang"]
        assert found.episode == expected["lang_index"]
        assert found.mask.sum(1).tolist() == expected["chunk_mask_valid_per_step"]
        assert found.next_mask.sum(1).tolist() == expected["fwd_mask_valid_per_step"]
        loaded = [*found.action_rows[0], *found.next_rows[1:, -1], found.next_rows[0, -1]]
        assert set(loaded) | set(found.rows) == set(expected["loaded_frames"])
        assert all(image.shape[0] == options.window for image in found.images.values())


def test_batches() -> None:
    windows = Windows(open_dataset(HERE / "training"), WindowOptions(8, 10))
    expected = np.load(HERE / "expected_batches.npz")
    for number in (0, 28, 55):
        found, key = windows[number], f"s{number}"
        assert np.array_equal(found.action_rows, expected[f"{key}.action_chunk_frames"])
        assert np.array_equal(found.mask, expected[f"{key}.chunk_mask"])
        assert np.array_equal(found.next_mask, expected[f"{key}.fwd_mask"])
        chunk = normalise(found.actions, -0.65, 0.65)
        assert np.abs(chunk - expected[f"{key}.action_chunk"]).max() <= 1e-6
