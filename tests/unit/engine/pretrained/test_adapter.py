"""LoRA and QLoRA: side by side, saved, resumed, merged, on a tiny Llama."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.tiny_llama import make_model, write_tiny
from workloads.config.sections import Adapter
from workloads.engine.pretrained.adapter import add_adapter, load_adapter, merge_into, save_adapters
from workloads.engine.pretrained.base import find_base
from workloads.errors import UserError
from workloads.llm.config import LlmConfig
from workloads.llm.model import load_model

pytestmark = pytest.mark.unit
INPUTS = torch.arange(5, 45).reshape(2, 20)


def wish(**changes: Any) -> Adapter:
    return Adapter.model_validate({"method": "lora", "r": 4, "alpha": 8, "dropout": 0, **changes})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUTS).logits


def trained(model: nn.Module, steps: int = 3) -> nn.Module:
    """A few real optimizer steps, so that the adapter does something."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(steps):
        model(input_ids=INPUTS, labels=INPUTS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def saved_adapter(folder: Path, **changes: Any) -> Path:
    save_adapters(trained(add_adapter(make_model(), wish(**changes))), folder)
    return folder


def test_only_the_adapter_is_trained() -> None:
    model = add_adapter(make_model(), wish())
    assert torch.equal(logits(model), logits(make_model()))  # a new adapter changes nothing
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert len(trainable) == 2 * 4 * 2 and all(".lora_" in name for name in trainable)
    trained(model)
    assert not torch.allclose(logits(model), logits(make_model()))
    frozen = {name: value for name, value in model.state_dict().items() if "lora_" not in name}
    before = make_model().state_dict()
    for name, value in frozen.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert torch.equal(value, before[plain])


def test_adapter_weights_are_fp32_over_a_bf16_base() -> None:
    model = add_adapter(make_model().to(torch.bfloat16), wish())
    kinds = {value.dtype for value in model.parameters() if value.requires_grad}
    assert kinds == {torch.float32}


def test_saved_and_loaded_gives_the_same_logits(tmp_path: Path) -> None:
    model = trained(add_adapter(make_model(), wish()))
    save_adapters(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert torch.equal(logits(load_adapter(make_model(), tmp_path)), logits(model))


@pytest.mark.filterwarnings("error")
def test_a_base_without_a_name_is_no_warning(tmp_path: Path) -> None:
    """V-L1: PEFT would say that the base was renamed to 'None'."""
    file = saved_adapter(tmp_path) / "adapter_config.json"
    named = json.loads(file.read_text()) | {"base_model_name_or_path": "openvla/openvla-7b"}
    file.write_text(json.dumps(named))
    load_adapter(make_model(), tmp_path)


def test_several_adapters_stay_apart(tmp_path: Path) -> None:
    model = trained(add_adapter(make_model(), wish(name="poems")))
    poems = logits(model)
    model = trained(add_adapter(model, wish(name="sums", r=2, targets=["down_proj"])), 5)
    sums = logits(model)
    model.set_adapter("poems")
    assert torch.equal(logits(model), poems) and not torch.allclose(poems, sums)
    save_adapters(model, tmp_path)
    assert torch.equal(logits(load_adapter(make_model(), tmp_path, "poems")), poems)
    assert torch.equal(logits(load_adapter(make_model(), tmp_path, "sums")), sums)
    both = load_adapter(load_adapter(make_model(), tmp_path, "poems"), tmp_path, "sums")
    assert torch.equal(logits(both), sums)
    with pytest.raises(UserError, match="expected a new name"):
        add_adapter(model, wish(name="sums"))


def test_an_adapter_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = saved_adapter(tmp_path)
    model = add_adapter(make_model(), wish(resume_from=str(folder)))
    assert torch.equal(logits(model), logits(load_adapter(make_model(), folder)))
    before = logits(model)
    assert not torch.equal(logits(trained(model)), before)


def test_going_on_with_another_shape_is_refused(tmp_path: Path) -> None:
    folder = saved_adapter(tmp_path)
    with pytest.raises(UserError, match=r"adapter\.r: expected 4.*found 8"):
        add_adapter(make_model(), wish(r=8, resume_from=str(folder)))
    with pytest.raises(UserError, match=r"adapter\.targets"):
        add_adapter(make_model(), wish(targets=["q_proj"], resume_from=str(folder)))


# L-F4: peft's own adapters, with every setting that changes what the weights mean.
MADE_BY_PEFT: dict[str, dict[str, Any]] = {
    "plain": {},
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "rank_pattern": {"rank_pattern": {"v_proj": 4}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 4}},
    "layers_to_transform": {"layers_to_transform": [0]},
    "target_modules": {"target_modules": r".*\.(q|v)_proj"},
    "bias": {"bias": "lora_only"},
    "trainable_token_indices": {"trainable_token_indices": [3]},
}


def made_by_peft(folder: Path, changes: dict[str, Any]) -> torch.Tensor:
    """Save an adapter as peft's users do, and return its logits."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    given = {"target_modules": ["q_proj", "v_proj"], **changes}
    settings = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **given)
    model = get_peft_model(make_model(), settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "magnitude" in name or "modules_to_save" in name:
            weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained(str(folder))
    return logits(model.eval())


@pytest.mark.parametrize("name", MADE_BY_PEFT)
def test_an_adapter_of_peft_goes_on_as_peft_computes_it_or_its_field_is_named(
    tmp_path: Path, name: str
) -> None:
    """L-F4"""
    changes = MADE_BY_PEFT[name]
    expected = made_by_peft(tmp_path, changes)
    assert torch.equal(logits(load_adapter(make_model(), tmp_path).eval()), expected)
    ours = {"targets": ["q_proj", "v_proj"], "resume_from": str(tmp_path)}
    settable = set(changes) & {"use_rslora", "use_dora", "modules_to_save"}
    if not changes or settable:
        model = add_adapter(make_model(), wish(**ours, **{key: changes[key] for key in settable}))
        assert torch.equal(logits(model.eval()), expected)
    if changes:
        with pytest.raises(UserError, match=next(iter(changes))):
            add_adapter(make_model(), wish(**ours))


def test_an_adapter_of_another_method_is_refused_by_name(tmp_path: Path) -> None:
    """L-F4"""
    folder = saved_adapter(tmp_path)
    own = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**own, "peft_type": "IA3"}))
    with pytest.raises(UserError, match=r"peft_type.*IA3"):
        add_adapter(make_model(), wish(resume_from=str(folder)))
    (folder / "adapter_config.json").write_text(json.dumps({**own, "use_newdora": True}))
    with pytest.raises(UserError, match=r"use_newdora"):
        add_adapter(make_model(), wish(resume_from=str(folder)))


def test_going_on_with_nothing_or_another_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found adapters: none"):
        add_adapter(make_model(), wish(resume_from=str(tmp_path)))
    folder = saved_adapter(tmp_path)
    with pytest.raises(UserError, match="other shapes"):
        add_adapter(make_model(hidden_size=16), wish(resume_from=str(folder)))
    with pytest.raises(UserError, match="does not have"):
        load_adapter(make_model(num_hidden_layers=1), folder)
    with pytest.raises(UserError, match="found none"):
        load_adapter(make_model(num_hidden_layers=3), folder)


def test_a_damaged_adapter_is_named(tmp_path: Path) -> None:
    weights = saved_adapter(tmp_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:64])
    with pytest.raises(UserError, match="damaged"):
        load_adapter(make_model(), tmp_path)


def test_a_target_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(UserError, match="'c_attn'.*down_proj.*q_proj"):
        add_adapter(make_model(), wish(targets=["q_proj", "c_attn"]))


def test_the_head_is_no_target_and_is_not_offered_as_one() -> None:
    """L-F11"""
    with pytest.raises(UserError, match=r"'lm_head'.*modules_to_save=\[lm_head\]"):
        add_adapter(make_model(), wish(targets=["q_proj", "lm_head"]))
    with pytest.raises(UserError, match="it has") as caught:
        add_adapter(make_model(), wish(targets=["wrong"]))
    assert "lm_head" not in str(caught.value)
    with pytest.raises(UserError, match=r"modules_to_save.*'other'"):
        add_adapter(make_model(), wish(modules_to_save=["other"]))


@pytest.mark.parametrize("targets", [["all-linear"], "all-linear"])
def test_all_linear_layers(targets: Any) -> None:
    """L-S13"""
    model = add_adapter(make_model(), wish(targets=targets))
    wrapped = [name for name, _ in model.named_modules() if name.endswith(".lora_A")]
    assert len(wrapped) == 2 * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_equals_base_with_adapter(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saved_adapter(tmp_path)
    merged, report = merge_into(make_model().to(dtype), folder)
    expected = logits(load_adapter(make_model().to(dtype), folder))
    assert type(merged) is type(make_model())
    difference = (logits(merged) - expected).abs().max()
    limit = report.tolerance * report.scale
    assert difference <= limit and report.difference <= limit
    assert (report.difference > 0) and (dtype == torch.bfloat16 or report.agreement == 1)
    assert not torch.allclose(logits(merged), logits(make_model().to(dtype)), atol=limit)


def test_a_merge_past_the_tolerance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected logits within"):
        merge_into(make_model().to(torch.bfloat16), saved_adapter(tmp_path), tolerance=1e-6)


def test_a_merge_without_finite_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = saved_adapter(tmp_path) / "adapter_model.safetensors"
    broken = {name: value * float("nan") for name, value in load_file(weights).items()}
    save_file(broken, weights)
    with pytest.raises(UserError, match="finite"):
        merge_into(make_model(), tmp_path)


def load(config: LlmConfig) -> Any:
    return load_model(find_base(config.model, print), config, print)


def qlora_config(folder: Path, quantisation: str) -> LlmConfig:
    settings: dict[str, Any] = {
        "workload": "llm",
        "name": "test",
        "model": {"name": str(folder)},
        "data": {"source": "rows.jsonl"},
        "adapter": {"method": "qlora", "quantisation": quantisation, "r": 4, "dropout": 0},
        "train": {"precision": "bf16"},
    }
    return LlmConfig.model_validate(settings)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)
def test_qlora_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        load(qlora_config(write_tiny(tmp_path), "nf4"))


def test_qlora_trains_over_nf4_and_merges_into_the_full_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    # nf4 works on blocks of 64 values: a base a little wider than elsewhere.
    folder = write_tiny(tmp_path / "base", hidden_size=64, intermediate_size=128)
    config = qlora_config(folder, "nf4")
    base = load(config)
    kinds = {type(module).__name__ for module in base.modules()}
    assert "Linear4bit" in kinds
    layer = base.model.layers[0].self_attn.q_proj
    assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
    assert layer.weight.numel() * layer.weight.element_size() == 64 * 64 // 2
    model = add_adapter(base, config.adapter)
    before = float(model(input_ids=INPUTS, labels=INPUTS).loss)
    trained(model, 8)
    assert float(model(input_ids=INPUTS, labels=INPUTS).loss) < before - 0.1
    save_adapters(model, tmp_path / "adapter")
    full = make_model(hidden_size=64, intermediate_size=128)
    quantised = load(config)
    merged, report = merge_into(full, tmp_path / "adapter", quantised=quantised)
    assert report.difference <= report.tolerance * report.scale
    assert report.quantised_difference is not None
    assert report.quantised_difference > report.difference
    with pytest.raises(UserError, match="found a quantised one"):
        merge_into(load(config), tmp_path / "adapter")
    json.dumps(report.as_dict())
    print(report.line())


def test_int8_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = qlora_config(write_tiny(tmp_path / "base"), "int8")
    base = load(config)
    assert base.model.layers[0].self_attn.q_proj.weight.dtype == torch.int8
    model = add_adapter(base, config.adapter)
    before = float(model(input_ids=INPUTS, labels=INPUTS).loss)
    assert float(trained(model, 8)(input_ids=INPUTS, labels=INPUTS).loss) < before
