"""The model against the recorded reference: forward, gradients, prediction, saving."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.support.openvla_golden import (
    VARIANTS,
    complete_model,
    inputs_of,
    json_of,
    largest,
    tensors_of,
)
from workloads.errors import UserError
from workloads.vla.actions import action_metrics
from workloads.vla.model import load_pretrained, save_pretrained

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete_model(variant, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def forward(request, variant: str, checkpoint: Path):
    model = load_pretrained(checkpoint, attn=request.param)
    with torch.no_grad():
        return model, model(**inputs_of(variant)), tensors_of(f"{variant}/forward.safetensors")


def test_loss_and_logits(forward, variant: str) -> None:
    _, output, golden = forward
    valid = golden["valid_positions"].bool()
    logits, others = output.logits, json_of(f"{variant}/forward.json")["logits_other_columns"]
    first = logits.shape[-1] - 64 - 256
    columns = logits[..., first : first + 256]
    assert abs(float(output.loss) - float(golden["loss"])) <= 2e-5
    assert largest((columns - golden["logits_action_columns"])[valid]) <= 1e-4
    assert largest((logits[..., others] - golden["logits_other_columns"])[valid]) <= 1e-4
    total = torch.logsumexp(logits, dim=-1)
    assert largest((total - golden["logsumexp_all_columns"])[valid]) <= 1e-4
    sure = valid & (golden["argmax_margin"] > 1e-3)
    assert torch.equal(logits.argmax(-1)[sure], golden["argmax_all_columns"][sure])
    assert largest((output.last_hidden_state - golden["last_hidden_state"])[valid]) <= 5e-5


@torch.no_grad()
def test_towers_and_projector(forward) -> None:
    model, _, golden = forward
    vision, pixels = model.vision_backbone, golden["pixel_values"]
    assert largest(vision.featurizer(pixels[:, :3]) - golden["featurizer_patches"]) <= 2e-5
    if "fused_featurizer_patches" in golden:
        second = vision.fused_featurizer(pixels[:, 3:])
        assert largest(second - golden["fused_featurizer_patches"]) <= 2e-5
    features = vision(pixels)
    assert largest(features - golden["patch_features"]) <= 2e-5
    assert largest(model.projector(features) - golden["projector_features"]) <= 2e-5


def test_metrics_of_the_training_script(forward, variant: str) -> None:
    model, output, golden = forward
    expected = json_of(f"{variant}/forward.json")
    predicted = output.logits[:, expected["num_patches"] : -1].argmax(-1)
    metrics = action_metrics(predicted, golden["labels"][:, 1:], model.action_tokenizer, 8)
    assert metrics.accuracy == pytest.approx(expected["action_accuracy"], abs=1e-12)
    assert metrics.l1 == pytest.approx(expected["action_l1_loss"], abs=1e-9)
    assert np.mean(metrics.l1_per_dimension) == pytest.approx(metrics.l1)


def test_logits_at_labels_alone(forward, variant: str) -> None:
    model, dense, golden = forward
    model.label_logits_only = True
    with torch.no_grad():
        sparse = model(**inputs_of(variant))
    model.label_logits_only = False
    labels = golden["labels"]
    patches = dense.logits.shape[1] - labels.shape[1]
    predicting = dense.logits[:, patches:-1][labels[:, 1:] != -100]
    assert torch.equal(sparse.targets, labels[labels != -100])
    assert largest(sparse.logits - predicting) <= 2e-5
    assert float(sparse.loss) == pytest.approx(float(dense.loss), abs=2e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(variant: str, checkpoint: Path, checkpointing: bool) -> None:
    model = load_pretrained(checkpoint, attn="eager")
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    model(**inputs_of(variant)).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    golden = json_of(f"{variant}/grads.json")
    assert set(grads) == set(golden["l2_norm"])
    for name, norm in golden["l2_norm"].items():
        assert (grads[name] is None) == (norm is None), name
        if norm is not None:
            assert float(grads[name].norm()) == pytest.approx(norm, rel=5e-5), name
    check_gradient_values(grads, golden, tensors_of(f"{variant}/grads.safetensors"))


def check_gradient_values(grads, golden, values) -> None:
    rows = {"embed_tokens": golden["embed_rows"], "lm_head": golden["lm_head_rows"]}
    for key, expected in values.items():
        name, _, what = key.partition("::")
        if what == "first8":
            scale = golden["max_abs"].get(name) or float(grads[name].abs().max())
            assert largest(grads[name].flatten()[:8] - expected) <= 5e-5 * scale, key
        else:
            found = grads[name][rows[name.split(".")[-2]]]
            assert largest(found - expected) <= 5e-5 * largest(expected), key


def prediction_cases() -> list[tuple[str, str]]:
    return [
        (variant, case["name"])
        for variant in VARIANTS
        for case in json_of(f"{variant}/predict_action.json")["cases"]
    ]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("name", sorted({name for _, name in prediction_cases()}))
def test_predict_action(variant: str, checkpoint: Path, name: str, attn: str) -> None:
    data = json_of(f"{variant}/predict_action.json")
    case = next((case for case in data["cases"] if case["name"] == name), None)
    if case is None:
        pytest.skip("this variant has no such case")
    tensors = tensors_of(f"{variant}/predict_action.safetensors")
    model = load_pretrained(checkpoint, attn=attn)
    if case["swap_lm_head_rows"]:
        swap_rows(model, case["swap_lm_head_rows"])
    stats = data["norm_stats_variants"][case["norm_stats_variant"]]
    mask = case["attention_mask"] and torch.tensor([case["attention_mask"]])
    arguments = (torch.tensor([case["input_ids"]]), tensors[case["pixel_values_key"]])
    if case["swap_lm_head_rows"]:
        with pytest.raises(UserError, match="found the end of the text after 3"):
            model.predict_action(*arguments, unnorm_key=case["unnorm_key"], norm_stats=stats)
        return
    actions = model.predict_action(
        *arguments, unnorm_key=case["unnorm_key"], norm_stats=stats, attention_mask=mask
    )
    assert actions.dtype == np.float64
    assert np.abs(actions - case["actions"]).max() <= 1e-12
    check_steps(model, case, arguments, tensors[f"{name}.step_logits_action_columns"])


def swap_rows(model, pair: list[int]) -> None:
    weight = model.language_model.lm_head.weight.data
    weight[pair] = weight[pair[::-1]].clone()


def check_steps(model, case, arguments, expected) -> None:
    ids, pixels = arguments
    if int(ids[0, -1]) != 29871:
        ids = torch.cat([ids, torch.tensor([[29871]])], dim=1)
    generated, logits = model.generate_action_ids(ids, pixels, len(expected))
    assert generated[0].tolist() == case["generated_token_ids"]
    first = model.action_tokenizer.first_id
    assert largest(logits[0, :, first : first + 256] - expected) <= 1e-4


@torch.no_grad()
def test_saved_checkpoint_has_the_published_layout(
    variant: str, checkpoint: Path, tmp_path: Path
) -> None:
    model = load_pretrained(checkpoint)
    save_pretrained(model, tmp_path, dtype=torch.bfloat16)
    recorded = json.loads((checkpoint / "config.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text()) == recorded
    assert json.loads((tmp_path / "generation_config.json").read_text()) == json_of(
        f"{variant}/generation_config.json"
    )
    before, after = (load_file(path / "model.safetensors") for path in (checkpoint, tmp_path))
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {
        name: (t.shape, t.dtype) for name, t in after.items()
    }
    with safe_open(tmp_path / "model.safetensors", framework="pt") as reader:
        assert reader.metadata() == {"format": "pt"}
    again = load_pretrained(tmp_path)
    inputs = inputs_of(variant)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_shards_with_an_index(variant: str, checkpoint: Path, tmp_path: Path) -> None:
    model = load_pretrained(checkpoint)
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert len(set(index["weight_map"].values())) > 1
    again = load_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
