"""The OFT head against the recorded reference: the head alone, training, inference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.openvla_golden import complete_model, json_of, largest, tensors_of
from workloads.vla.model import load_pretrained, save_pretrained
from workloads.vla.openvla.config import OftSpec
from workloads.vla.openvla.oft import L1ActionHead

pytestmark = pytest.mark.golden
SAMPLES = [
    (f"infer_sample{row}_{kind}", row, kind == "proprio")
    for row in (0, 1)
    for kind in ("no_proprio", "proprio")
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete_model("tiny_fused", tmp_path_factory.mktemp("golden"))


def sizes(proprio: bool, head: str = "l1") -> OftSpec:
    recorded = json_of("oft.json")
    return OftSpec(
        recorded["action_dim"],
        recorded["num_actions_chunk"],
        proprio_dim=tensors_of("oft.safetensors")["train.proprio"].shape[1] if proprio else None,
        head=head,
        blocks=recorded["num_blocks"],
    )


def recorded_head(prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors_of("oft.safetensors").items()
        if name.startswith(prefix)
    }


def policy(checkpoint: Path, proprio: bool, head: str = "l1", attn: str = "sdpa"):
    model = load_pretrained(checkpoint, attn=attn, oft=sizes(proprio, head))
    if head == "l1":
        model.action_head.load_state_dict(recorded_head("action_head."))
    if proprio:
        model.proprio_projector.load_state_dict(recorded_head("proprio_projector."))
    return model


def training_batch(proprio: bool) -> dict[str, torch.Tensor]:
    names = ("pixel_values", "input_ids", "attention_mask", "labels")
    data = tensors_of("oft.safetensors")
    batch = {name: data[f"train.{name}"] for name in names}
    batch["actions"] = data["train.ground_truth_actions"]
    return batch | ({"proprio": data["train.proprio"]} if proprio else {})


def test_head_alone() -> None:
    data, expected = tensors_of("oft.safetensors"), json_of("oft.json")["head_only"]
    head = L1ActionHead(sizes(proprio=False), data["head_only.hidden_states"].shape[-1])
    head.load_state_dict(recorded_head("action_head."))
    predicted = head(data["head_only.hidden_states"])
    truth = data["head_only.ground_truth_actions"]
    loss = functional.l1_loss(predicted, truth)
    loss.backward()
    assert largest(predicted - data["head_only.predicted_actions"]) <= 5e-5
    assert float(loss.detach()) == pytest.approx(expected["l1_loss"], abs=2e-5)
    error = (predicted - truth).abs()
    assert float(error[:, 0].mean()) == pytest.approx(expected["curr_action_l1"], abs=2e-5)
    assert float(error[:, 1:].mean()) == pytest.approx(expected["next_actions_l1"], abs=2e-5)
    for name, parameter in head.named_parameters():
        norm = expected["grad_l2_norm"][f"action_head.{name}"]
        assert float(parameter.grad.norm()) == pytest.approx(norm, rel=5e-5), name


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("proprio", [False, True])
def test_training_forward(checkpoint: Path, proprio: bool, attn: str) -> None:
    data, name = tensors_of("oft.safetensors"), "train_proprio" if proprio else "train_no_proprio"
    expected = json_of("oft.json")[name]
    model = policy(checkpoint, proprio, attn=attn)
    batch = training_batch(proprio)
    output = model(**batch)
    output.loss.backward()
    count = output.last_hidden_state.shape[1] - batch["input_ids"].shape[1]
    mask = batch["attention_mask"].bool()
    valid = torch.cat([mask[:, :1], mask[:, :1].expand(-1, count), mask[:, 1:]], dim=1)
    hidden = output.last_hidden_state - data[f"{name}.last_hidden_state"]
    assert largest(hidden[valid]) <= 5e-5
    selected = output.actions_hidden_states - data[f"{name}.actions_hidden_states"]
    assert largest(selected) <= 5e-5
    assert largest(output.predicted_actions - data[f"{name}.predicted_actions"]) <= 5e-5
    assert float(output.loss) == pytest.approx(expected["l1_loss"], abs=2e-5)
    for parameter, norm in expected["grad_l2_norm"].items():
        gradient = model.get_parameter(parameter).grad
        assert float(gradient.norm()) == pytest.approx(norm, rel=5e-5), parameter
    assert (model.language_model.lm_head.weight.grad is not None) == expected["lm_head_has_grad"]


@pytest.mark.parametrize("proprio", [False, True])
@torch.no_grad()
def test_discrete_training_loss(checkpoint: Path, proprio: bool) -> None:
    model = policy(checkpoint, proprio, head="discrete")
    batch = training_batch(proprio)
    name = "train_proprio" if proprio else "train_no_proprio"
    expected = json_of("oft.json")[name]["discrete_ce_loss_of_the_language_model"]
    for only in (False, True):
        model.label_logits_only = only
        assert float(model(**batch).loss) == pytest.approx(expected, abs=2e-5)


def inference_inputs(row: int, proprio: bool) -> dict[str, torch.Tensor]:
    data = tensors_of("oft.safetensors")
    length = json_of("oft.json")["prompt_lengths_with_29871"][row]
    inputs = {
        "input_ids": data["train.input_ids"][row : row + 1, :length],
        "pixel_values": data["train.pixel_values"][row : row + 1],
    }
    return inputs | ({"proprio": data["train.proprio"][row : row + 1]} if proprio else {})


@pytest.mark.parametrize(("name", "row", "proprio"), SAMPLES)
def test_inference(checkpoint: Path, name: str, row: int, proprio: bool) -> None:
    data, key = tensors_of("oft.safetensors"), json_of("oft.json")["unnorm_key"]
    model = policy(checkpoint, proprio)
    inputs = inference_inputs(row, proprio)
    normalised = model.predict_chunk(
        inputs["input_ids"], inputs["pixel_values"], inputs.get("proprio")
    )
    assert np.abs(normalised[0] - data[f"{name}.normalized_actions"].numpy()).max() <= 5e-5
    actions = model.predict_action(**inputs, unnorm_key=key)
    assert actions.shape == (8, 8)
    assert np.abs(actions - data[f"{name}.actions"].numpy()).max() <= 2e-4
    # The blank at the end of the prompt is added where it is missing.
    inputs["input_ids"] = inputs["input_ids"][:, :-1]
    assert np.array_equal(model.predict_action(**inputs, unnorm_key=key), actions)


@pytest.mark.parametrize(("name", "row", "proprio"), SAMPLES)
def test_discrete_inference(checkpoint: Path, name: str, row: int, proprio: bool) -> None:
    expected = tensors_of("oft.safetensors")[f"{name}.discrete_normalized_actions"].numpy()
    model = policy(checkpoint, proprio, head="discrete")
    inputs = inference_inputs(row, proprio)
    found = model.predict_chunk(inputs["input_ids"], inputs["pixel_values"], inputs.get("proprio"))
    assert np.abs(found[0] - expected).max() <= 1e-12


def test_saved_head_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    model = policy(checkpoint, proprio=True)
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.oft == model.oft
    assert set(again.state_dict()) == set(model.state_dict())
    inputs = inference_inputs(0, proprio=True)
    assert np.array_equal(again.predict_action(**inputs), model.predict_action(**inputs))
