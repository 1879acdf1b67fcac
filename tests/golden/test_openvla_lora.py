"""LoRA on OpenVLA against the recorded reference, through peft and its key names."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.support.openvla_golden import (
    ROOT,
    complete_model,
    inputs_of,
    json_of,
    largest,
    tensors_of,
)
from workloads.vla.model import load_pretrained
from workloads.vla.openvla.lora import linear_suffixes, used_linears

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return complete_model("tiny_fused", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def adapted(checkpoint: Path) -> PeftModel:
    model = load_pretrained(checkpoint, attn="eager")
    return PeftModel.from_pretrained(model, ROOT / "lora", is_trainable=True)


def test_forward_and_gradients(adapted: PeftModel) -> None:
    golden = tensors_of("lora/forward_r4.safetensors")
    valid = tensors_of("tiny_fused/forward.safetensors")["valid_positions"].bool()
    output = adapted(**inputs_of("tiny_fused"))
    output.loss.backward()
    assert abs(float(output.loss.detach()) - float(golden["loss"])) <= 2e-5
    columns = output.logits[..., 31744:32000]
    assert largest((columns - golden["logits_action_columns"])[valid]) <= 1e-4
    model = adapted.get_base_model()
    features = model.projector(model.vision_backbone(inputs_of("tiny_fused")["pixel_values"]))
    assert largest(features - golden["projector_features"]) <= 2e-5
    norms = json_of("lora/lora.json")["r4_golden"]["adapter_grad_l2_norm"]
    grads = {n.removeprefix("base_model.model."): p.grad for n, p in adapted.named_parameters()}
    for name, norm in norms.items():
        assert (grads[name] is None) == (norm is None), name
        if norm is not None:
            assert float(grads[name].norm()) == pytest.approx(norm, rel=5e-5), name


def test_merged(checkpoint: Path) -> None:
    golden = tensors_of("lora/forward_r4.safetensors")
    model = load_pretrained(checkpoint, attn="eager")
    merged = PeftModel.from_pretrained(model, ROOT / "lora").merge_and_unload()
    state = merged.state_dict()
    for key, expected in golden.items():
        if key.startswith("merged."):
            assert largest(state[key.removeprefix("merged.")] - expected) <= 1e-6
    assert set(state) == set(load_pretrained(checkpoint).state_dict())


def test_the_reference_choice_of_modules(checkpoint: Path) -> None:
    expected = json_of("lora/lora.json")
    model = load_pretrained(checkpoint)
    targets = linear_suffixes(model)
    assert targets == expected["target_suffixes"]
    config = LoraConfig(
        r=expected["r"],
        lora_alpha=expected["lora_alpha"],
        init_lora_weights="gaussian",
        target_modules=targets,
    )
    wrapped = get_peft_model(model, config)
    names = {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if hasattr(module, "lora_A")
    }
    assert set(names) == set(expected["wrapped_modules"])
    for name, shapes in expected["wrapped_modules"].items():
        assert list(names[name].lora_A["default"].weight.shape) == shapes["lora_A"], name
        assert list(names[name].lora_B["default"].weight.shape) == shapes["lora_B"], name
        assert names[name].scaling["default"] == shapes["scaling"]
    trainable, total = wrapped.get_nb_trainable_parameters()
    assert (trainable, total) == (expected["trainable_parameters"], expected["all_parameters"])


def test_targets_that_all_get_gradients(checkpoint: Path) -> None:
    expected = json_of("lora/lora.json")["r4_golden"]["adapter_grad_l2_norm"]
    used = {name.rsplit(".lora_", 1)[0] for name, norm in expected.items() if norm is not None}
    patches = {name for name in used if name.endswith("patch_embed.proj")}
    model = load_pretrained(checkpoint)
    targets = used_linears(model)
    assert set(targets) == used - patches
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    wrapped(**inputs_of("tiny_fused")).loss.backward()
    trainable = [p for p in wrapped.parameters() if p.requires_grad]
    assert trainable and all(parameter.grad is not None for parameter in trainable)
    assert not torch.equal(trainable[1].grad, torch.zeros_like(trainable[1]))
