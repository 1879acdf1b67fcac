"""Action tokens, discrete loss, gripper rules and windows of RoboVLMs, from its numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.calvin_cases import write_calvin
from workloads.data.robot import open_dataset
from workloads.data.robot.crane_x7.writer import write_episode
from workloads.data.windows import Window, WindowOptions, Windows
from workloads.vla.actions import ActionTokenizer
from workloads.vla.robovlms.actions import command, normalise
from workloads.vla.robovlms.modeling import discrete_loss
from workloads.vla.robovlms.samples import discrete_ids

pytestmark = pytest.mark.golden
HERE = Path(__file__).parent / "robovlms"
CASES = json.loads((HERE / "expected.json").read_text())["cases"]
GRIPPER = json.loads((HERE / "gripper_labels.json").read_text())


@pytest.mark.parametrize("name", ["llama", "small", "bins100", "range065"])
def test_action_tokens(name: str) -> None:
    case, stored = CASES[f"tokenizer_{name}"], np.load(HERE / "action_tokenizer.npz")
    usable = case["vocab_size"] - case["special_tokens_count"] - case["offset"]
    assert usable == case["tokenizer_orig_size"]
    tokenizer = ActionTokenizer(usable, case["n_bins"], case["min_action"], case["max_action"])
    assert np.array_equal(tokenizer.encode(stored[f"{name}.values_f64"]), stored[f"{name}.ids"])
    single = stored[f"{name}.values_f32"]
    assert np.array_equal(tokenizer.encode(single), stored[f"{name}.ids_from_f32"])
    for ids, values in (("ids", "decoded"), ("all_ids", "all_decoded")):
        found = tokenizer.decode(stored[f"{name}.{ids}"])
        assert np.array_equal(found, stored[f"{name}.{values}"])


@pytest.mark.parametrize("name", ["a", "b"])
def test_discrete_loss_and_what_was_predicted(name: str) -> None:
    stored, expected = load_file(HERE / "discrete.safetensors"), CASES[f"discrete_{name}"]
    logits = stored[f"{name}.logits"].float().requires_grad_()
    labels = stored[f"{name}.labels"][:, 1:]
    keep = labels != -100
    loss = discrete_loss(logits[:, :-1][keep], labels[keep])
    assert loss.item() == pytest.approx(expected["loss_arm"], rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    total = stored[f"{name}.grad_logits_sum_abs"].item()
    assert logits.grad.abs().sum().item() == pytest.approx(total, rel=1e-5)

    case = CASES["tokenizer_small"]
    tokenizer = ActionTokenizer(case["tokenizer_orig_size"], case["n_bins"])
    wanted = labels[keep]
    is_action = (wanted >= tokenizer.first_id) & (wanted < tokenizer.vocab_size)
    found = logits.detach()[:, :-1][keep].argmax(dim=-1)[is_action].numpy().reshape(-1, 7)
    true = wanted[is_action].numpy().reshape(-1, 7)
    right = found == true
    assert right[:, :6].mean() == pytest.approx(expected["acc_arm"], abs=1e-6)
    assert right[:, 6].mean() == pytest.approx(expected["acc_gripper"], abs=1e-6)
    error = np.abs(tokenizer.decode(found) - tokenizer.decode(true)).mean()
    assert error == pytest.approx(expected["action_l1"], abs=1e-9)


def test_a_batch_without_a_label_is_no_nan() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    assert discrete_loss(torch.zeros(0, 5), nothing).item() == 0


def test_gripper_labels_and_commands() -> None:
    raw = np.array(GRIPPER["raw"])
    actions = np.zeros((len(raw), 7))
    actions[:, 6] = raw
    labels = GRIPPER["calvin_collate_floor((g+1)/2)"]
    assert normalise(actions, -0.65, 0.65)[:, 6].tolist() == labels
    tokenizer = ActionTokenizer(387)
    refined = GRIPPER["refine_value0_status_false (anything but 1 becomes 0)"]
    actions[:, 6] = refined
    found = tokenizer.decode(discrete_ids(tokenizer, actions, True)[:, 6])
    ends = GRIPPER["then_for_discrete: not 1 -> min_action(-1), 1 -> max_action(1)"]
    assert np.sign(found).tolist() == ends
    for case in GRIPPER["inference"]:
        sent = command(np.zeros((1, 6)), np.array([[case["logit"]]]), -0.65, 0.65)
        assert sent[0, 6] == case["command_with_norm_action"]


@pytest.mark.parametrize(
    ("name", "end"), [("ep40_end_exclusive", 140), ("ep40_inclusive_last_frame_139", 139)]
)
def test_windows_of_an_episode(name: str, end: int, tmp_path: Path) -> None:
    expected = json.loads((HERE / "windows.json").read_text())[name]
    stored = np.load(HERE / f"window_{name}.npz")
    folder = write_calvin(tmp_path / "training", spans=((100, end),), recordings=((100, 140),))
    windows = Windows(open_dataset(folder), WindowOptions(window=8, chunk=10))
    assert len(windows) == expected["num_samples"]
    for number, sample in enumerate(expected["samples"]):
        window = windows[number]
        assert window.rows.tolist() == sample["image_frames"]
        assert window.mask.sum(axis=1).tolist() == sample["chunk_mask_valid_per_step"]
        for own, key in _pairs(window):
            assert np.array_equal(own, stored[f"s{number}.{key}"]), (number, key)


def _pairs(window: Window) -> list[tuple[np.ndarray, str]]:
    return [
        (window.action_rows, "action_chunk_frames"),
        (window.mask, "chunk_mask"),
        (window.next_rows, "fwd_rgb_frames"),
        (window.next_mask, "fwd_mask"),
    ]


@pytest.mark.parametrize("steps", [40, 9])
def test_windows_of_a_format_without_a_frame_to_pad(steps: int, tmp_path: Path) -> None:
    """RoboVLMs' loader of Open X-Embodiment: the last step is real, and repeated with mask 0."""
    stored: dict[str, Any] = dict(np.load(HERE / "chunked_episode.npz"))
    case = f"sliding_nopad_{steps}"
    images = {"primary": [np.full((4, 4, 3), step, np.uint8) for step in range(steps)]}
    states = np.zeros((steps, 8), np.float32)
    write_episode(tmp_path / "episode_0000_20251210_090000", states, images, "go")
    dataset = open_dataset(tmp_path, drop_last_placeholder=False)
    windows = Windows(dataset, WindowOptions(window=8, chunk=10))
    indices, mask = stored[f"{case}.indices"], stored[f"{case}.mask"]
    assert len(windows) == len(indices)
    actions = stored[f"{case}.episode_actions"]
    chunks = stored[f"{case}.action_chunk"]
    for number, window in enumerate(windows):
        assert np.array_equal(window.action_rows[0], indices[number, :10])
        assert np.array_equal(window.action_rows[7], indices[number, 7:17])
        assert np.array_equal(window.mask[0], mask[number, :10] > 0)
        assert np.array_equal(window.mask, stored[f"{case}.action_chunk_mask"][number] > 0)
        if number < len(chunks):
            found = normalise(actions[window.action_rows], -0.65, 0.65)
            assert np.abs(found[..., :6] - chunks[number][..., :6]).max() < 1e-6
