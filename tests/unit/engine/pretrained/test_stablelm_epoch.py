"""A model of kind stablelm_epoch: loaded as transformers' stablelm, equal to the old formula."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, StableLmConfig, StableLmForCausalLM

from tests.support.tiny_llama import make_tokenizer
from workloads.config.sections import Model
from workloads.engine.pretrained.base import find_base, load_config
from workloads.engine.pretrained.stablelm_epoch import native_fields
from workloads.errors import UserError
from workloads.llm.config import LlmConfig
from workloads.llm.model import load_for_use, load_model, load_tokenizer

pytestmark = pytest.mark.unit

# As published files of this kind have them, with the sizes of a tiny model.
OWN: dict[str, Any] = {
    "architectures": ["StableLMEpochForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_stablelm_epoch.StableLMEpochConfig"},
    "bos_token_id": 2,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 56,
    "max_position_embeddings": 128,
    "model_type": "stablelm_epoch",
    "norm_eps": 1e-3,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rope_pct": 0.5,
    "rope_theta": 500,
    "rotary_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.34.0",
    "use_cache": True,
    "vocab_size": 261,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with the old config.json, and weights that are far from their start."""
    path = tmp_path / "old"
    config = StableLmConfig(**native_fields("old", OWN))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = StableLmForCausalLM(config)
        for name, weight in model.named_parameters():
            with torch.no_grad():
                weight.normal_(0.0 if "bias" in name or "proj" in name else 0.5, 0.3)
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    (path / "config.json").write_text(json.dumps(OWN))
    return path


def old_logits(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The kind's own formula: LayerNorm, partial rotation of halves, SwiGLU; (length, vocab)."""
    heads, width, length = OWN["num_heads"], OWN["hidden_size"], len(ids)
    size = width // heads
    turned = int(size * OWN["rope_pct"])
    slow = OWN["rope_theta"] ** -(torch.arange(0, turned, 2) / turned)
    angles = torch.outer(torch.arange(length), slow).repeat(1, 2)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, (width,), scale, shift, OWN["norm_eps"])

    def rotated(x: torch.Tensor) -> torch.Tensor:
        part, rest = x[..., :turned], x[..., turned:]
        half = torch.cat((-part[..., turned // 2 :], part[..., : turned // 2]), dim=-1)
        return torch.cat((part * angles.cos() + half * angles.sin(), rest), dim=-1)

    def project(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T

    x = weights["model.embed_tokens.weight"][ids]
    hidden = torch.triu(torch.full((length, length), -torch.inf), diagonal=1)
    for layer in range(OWN["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        seen = norm(x, f"{place}.input_layernorm")
        q, k, v = (
            project(seen, f"{place}.self_attn.{name}_proj")
            .view(length, heads, size)
            .transpose(0, 1)
            for name in "qkv"
        )
        scores = rotated(q) @ rotated(k).transpose(1, 2) / size**0.5 + hidden
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, width)
        x = x + project(mixed, f"{place}.self_attn.o_proj")
        seen = norm(x, f"{place}.post_attention_layernorm")
        gate = torch.nn.functional.silu(project(seen, f"{place}.mlp.gate_proj"))
        x = x + project(gate * project(seen, f"{place}.mlp.up_proj"), f"{place}.mlp.down_proj")
    return project(norm(x, "model.norm"), "lm_head")


def test_logits_are_those_of_the_old_formula_in_both_layouts(folder: Path, tmp_path: Path) -> None:
    ids = torch.tensor([5, 17, 200, 3, 99, 42, 260, 7])
    expected = old_logits(load_file(folder / "model.safetensors"), ids)
    ready = load_for_use(str(folder), "fp32", print)
    assert ready.model.config.model_type == "stablelm"
    with torch.no_grad():
        torch.testing.assert_close(ready.model(ids[None]).logits[0], expected)
    ready.model.save_pretrained(tmp_path / "new")
    assert AutoConfig.from_pretrained(tmp_path / "new").model_type == "stablelm"
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "new")(ids[None]).logits[0]
    torch.testing.assert_close(again, expected)


def test_it_loads_for_training_with_its_tokenizer_and_no_code(folder: Path) -> None:
    (folder / "configuration_stablelm_epoch.py").write_text("raise SystemExit('code was run')")
    settings = {
        "workload": "llm",
        "name": "test",
        "model": {"name": str(folder)},
        "data": {"source": "rows.jsonl"},
        "train": {"precision": "fp32"},
    }
    base = find_base(Model(name=str(folder)), print)
    model = load_model(base, LlmConfig.model_validate(settings), print)
    assert type(model) is StableLmForCausalLM
    assert len(load_tokenizer(base, print)) == 261


@pytest.mark.parametrize(
    ("field", "value"),
    [("rotary_scaling_factor", 2.0), ("num_heads", 8), ("rope_scaling", {"type": "dynamic"})],
)
def test_a_field_that_would_be_lost_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OWN | {field: value}))
    with pytest.raises(UserError, match=f"found {field} "):
        load_config(Model(name="owner/old"), tmp_path)


def test_fields_that_have_other_names_arrive() -> None:
    config = StableLmConfig(**native_fields("old", OWN | {"use_qkv_bias": True}))
    assert config.layer_norm_eps == OWN["norm_eps"] and config.use_qkv_bias
    assert config.rope_parameters["partial_rotary_factor"] == OWN["rope_pct"]
    assert config.rope_parameters["rope_theta"] == OWN["rope_theta"]
