"""OpenVLA models of every shape: building, loading, refusing, saving, training all parameters."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from workloads.config.merge import resolve
from workloads.errors import UserError
from workloads.vla.model import load_pretrained, random_init, save_pretrained
from workloads.vla.openvla.config import OftSpec, parse
from workloads.vla.openvla.layout import OFT_CONFIG, OFT_WEIGHTS, is_head
from workloads.vla.openvla.loading import plain, trainable
from workloads.vla.openvla.modeling import OpenVLA
from workloads.vla.openvla.quantise import Quantisation

pytestmark = pytest.mark.unit
PROFILE = Path(__file__).resolve().parents[3] / "profiles/recipes/vla-tiny.yaml"
DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
TOWERS = {
    DINO: {"embed_dim": 16, "depth": 3, "num_heads": 2, "img_size": 28, "pretrained": False},
    SIGLIP: {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 28, "pretrained": False},
}
ENTRY = {"mean": [0.0], "std": [1.0], "min": [-2.0], "max": [2.0], "q01": [-1.0], "q99": [3.0]}
STATS = {"arm": {"action": {name: value * 4 for name, value in ENTRY.items()}}}


def fields(*towers: str, **changes: Any) -> dict[str, Any]:
    towers = towers or (DINO, SIGLIP)
    return {
        "model_type": "openvla",
        "timm_model_ids": list(towers),
        "tiny_vision_towers": {tower: TOWERS[tower] for tower in towers},
        "image_sizes": [28] * len(towers),
        "use_fused_vision_backbone": len(towers) == 2,
        "norm_stats": STATS,
        "pad_token_id": 32000,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 32064,
            "pad_token_id": 32000,
        },
    } | changes


def made(folder: Path, *towers: str, oft: OftSpec | None = None, **changes: Any) -> OpenVLA:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields(*towers, **changes)))
    return random_init(folder, seed=1, oft=oft)


def batch(model: OpenVLA, actions: int = 4, rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, 29000, (rows, 6), generator=generator)
    ids = torch.randint(31744, 32000, (rows, actions), generator=generator)
    tail = torch.full((rows, 1), 2)
    input_ids = torch.cat([prompt, ids, tail], dim=1)
    labels = torch.cat([torch.full_like(prompt, -100), ids, tail], dim=1)
    pixels = torch.randn(rows, model.spec.channels, 28, 28, generator=generator)
    return {"pixel_values": pixels, "input_ids": input_ids, "labels": labels}


@pytest.mark.parametrize("towers", [(DINO,), (SIGLIP,), (DINO, SIGLIP)])
def test_every_trainable_parameter_gets_a_gradient(tmp_path: Path, towers) -> None:
    model = made(tmp_path / "model", *towers)
    model.train()
    model(**batch(model)).loss.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith("vision_backbone.")
        and (".blocks.2." in name or ".attn_pool." in name or "featurizer.norm." in name)
    }


@pytest.mark.parametrize("towers", [(DINO,), (SIGLIP,), (DINO, SIGLIP)])
@torch.no_grad()
def test_saving_and_loading_agree(tmp_path: Path, towers) -> None:
    model = made(tmp_path / "model", *towers)
    save_pretrained(model, tmp_path / "out")
    again = load_pretrained(tmp_path / "out")
    inputs = batch(model)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    keys = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert ("projector.fc3.weight" in keys) == (len(towers) == 2)
    assert ("vision_backbone.featurizer.blocks.0.ls1.scale_factor" in keys) == (DINO in towers)
    assert any("attn_pool.latent" in key for key in keys) == (SIGLIP in towers)
    if towers == (DINO,):
        assert tuple(model.projector.fc1.weight.shape) == (16, 16)


@torch.no_grad()
def test_eager_and_sdpa_agree(tmp_path: Path) -> None:
    model = made(tmp_path / "model")
    save_pretrained(model, tmp_path / "out")
    inputs = batch(model)
    eager, sdpa = (load_pretrained(tmp_path / "out", attn=kind) for kind in ("eager", "sdpa"))
    assert torch.allclose(eager(**inputs).logits, sdpa(**inputs).logits, atol=1e-5)


def test_text_config_fields_reach_llama(tmp_path: Path) -> None:
    text = fields()["text_config"] | {"rms_norm_eps": 1e-5, "rope_theta": 5000.0}
    llama = made(tmp_path / "model", text_config=text).language_model
    assert llama.model.norm.variance_epsilon == 1e-5
    inverse = llama.model.rotary_emb.inv_freq
    assert float(inverse[1]) == pytest.approx(5000.0**-0.5)


@torch.no_grad()
def test_half_precision_keeps_the_rotary_table(tmp_path: Path) -> None:
    save_pretrained(made(tmp_path / "model"), tmp_path / "out")
    model = load_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model(**batch(model)).logits.dtype == torch.bfloat16
    save_pretrained(model, tmp_path / "half")
    saved = json.loads((tmp_path / "half" / "config.json").read_text())
    assert (saved["torch_dtype"], saved["text_config"]["torch_dtype"]) == ("bfloat16",) * 2


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a").state_dict(), made(tmp_path / "b").state_dict()
    other = random_init(tmp_path / "a", seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["projector.fc1.weight"], other["projector.fc1.weight"])


def test_a_loaded_model_may_be_saved_over_its_files(tmp_path: Path) -> None:
    save_pretrained(made(tmp_path / "model"), tmp_path / "out")
    model = load_pretrained(tmp_path / "out")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.projector.fc1.weight.add_(1.0)
    save_pretrained(model, tmp_path / "out")
    after = load_pretrained(tmp_path / "out").state_dict()
    assert torch.equal(after["projector.fc1.weight"], before["projector.fc1.weight"] + 1.0)
    assert torch.equal(after["projector.fc2.weight"], before["projector.fc2.weight"])


def test_missing_unexpected_and_misshapen_parameters(tmp_path: Path) -> None:
    model = made(tmp_path / "model")
    save_pretrained(model, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    state = load_file(file)
    norm = state.pop("language_model.model.norm.weight")
    save_file(state | {"language_model.extra.weight": norm}, file)
    with pytest.raises(UserError, match=r"model\.norm\.weight.*unexpected 1: language_model\.ex"):
        load_pretrained(tmp_path / "out")
    save_file(state | {"language_model.model.norm.weight": norm[:4].clone()}, file)
    with pytest.raises(UserError, match=r"norm\.weight of shape \[16\], found \[4\]"):
        load_pretrained(tmp_path / "out")
    file.write_bytes(b"no weights at all")
    with pytest.raises(UserError, match=r"model\.safetensors: expected safetensors"):
        load_pretrained(tmp_path / "out")
    file.unlink()
    with pytest.raises(UserError, match="convert other weight formats"):
        load_pretrained(tmp_path / "out")


def test_incomplete_shards(tmp_path: Path) -> None:
    made(tmp_path / "model").save_pretrained(tmp_path / "out", max_shard_size="1MB")
    sorted((tmp_path / "out").glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(UserError, match="model-00001-of.*complete the download"):
        load_pretrained(tmp_path / "out")


def test_adapters_must_be_merged_before_saving(tmp_path: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = made(tmp_path / "model")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), model)
    with pytest.raises(UserError, match="adapters merged"):
        save_pretrained(model, tmp_path / "out")


def test_statistics_beside_the_weights_win(tmp_path: Path) -> None:
    save_pretrained(made(tmp_path / "model"), tmp_path / "out")
    assert load_pretrained(tmp_path / "out").norm_stats == STATS
    (tmp_path / "out" / "dataset_statistics.json").write_text(json.dumps({"other": {}}))
    assert load_pretrained(tmp_path / "out").norm_stats == {"other": {}}


def test_the_original_tools_find_the_code(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "configuration_prismatic.OpenVLAConfig", "AutoX": "a/b--c.D"}
    save_pretrained(made(tmp_path / "model", auto_map=auto_map), tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    published = "openvla/openvla-7b--configuration_prismatic.OpenVLAConfig"
    assert saved == {"AutoConfig": published, "AutoX": "a/b--c.D"}


BROKEN = [
    ({"model_type": "llava"}, "expected model_type"),
    ({"timm_model_ids": [DINO, "resnet50"]}, "expected a known vision tower, found 'resnet50'"),
    ({"timm_model_ids": [DINO]}, "expected 2 timm_model_ids"),
    ({"timm_model_ids": None, "vision_backbone_id": "x"}, "known vision_backbone_id, found 'x'"),
    ({"tiny_vision_towers": {DINO: {"wide": 3}}}, "unknown field 'wide'"),
    ({"tiny_vision_towers": {DINO: {"img_size": 42}}}, "equal numbers of patches"),
    ({"text_config": {"model_type": "phi"}}, "expected a llama text_config"),
    ({"text_config": {"vocab_size": 300}}, "room for 256 action tokens"),
    ({"timm_override_act_layers": ["nope", None]}, "found 'nope'"),
    ({"timm_model_ids": [DINO, 7]}, "found a mistake: 'int' object has no attribute"),
    ({"pad_token_id": ""}, "found a mistake: invalid literal"),
    ({"tiny_vision_towers": {DINO: {"depth": -1}}}, "expected sizes of at least 1"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_broken_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(fields() | changes)


def test_a_shape_that_no_model_has(tmp_path: Path) -> None:
    text = dict(fields()["text_config"])
    for wrong in ({"pad_token_id": 1.5}, {"num_key_value_heads": -1}):
        changed = json.dumps(fields(text_config=text | wrong))
        (tmp_path / "config.json").write_text(changed)
        with pytest.raises(UserError, match=r"config\.json: expected the shape of a model"):
            load_pretrained(tmp_path)


def test_the_published_configuration() -> None:
    raw = {
        "model_type": "openvla",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "image_sizes": [224, 224],
        "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
    }
    spec = parse(raw)
    assert [tower.width for tower in spec.towers] == [1024, 1152]
    assert [tower.depth for tower in spec.towers] == [24, 27]
    assert spec.towers[1].mlp_width == 4304
    assert (spec.patches, spec.channels, spec.action_vocab_size) == (256, 6, 32000)
    one = parse(raw | {"vision_backbone_id": "siglip-vit-so400m-384px", "image_sizes": [384]})
    assert (one.patches, one.channels) == (729, 3)


def test_broken_files_name_their_place(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "openvla",\n "x": }')
    with pytest.raises(UserError, match=r"config\.json:2:7: expected JSON"):
        load_pretrained(tmp_path)
    with pytest.raises(UserError, match="expected a folder or a hub id"):
        load_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "pi0"}')
    with pytest.raises(UserError, match="expected model_type of openvla, found 'pi0'"):
        load_pretrained(tmp_path)


def test_prediction_takes_arrays_and_several_prompts(tmp_path: Path) -> None:
    model = made(tmp_path / "model")
    model.train()
    inputs = batch(model)
    ids, pixels = inputs["input_ids"][:, :6], inputs["pixel_values"]
    together = model.predict_actions(ids, pixels)
    alone = model.predict_action(ids[1:].numpy(), pixels[1:].numpy(), unnorm_key="arm")
    assert model.training
    assert (together.shape, alone.shape, alone.dtype) == ((2, 4), (4,), np.float64)
    assert np.array_equal(together[1], alone)
    assert ((alone >= -1) & (alone <= 3)).all()


def test_prediction_refuses(tmp_path: Path) -> None:
    model = made(tmp_path / "model")
    inputs = batch(model)
    ids, pixels = inputs["input_ids"][:1, :6], inputs["pixel_values"][:1]
    with pytest.raises(UserError, match="found 'leg'; known: arm"):
        model.predict_action(ids, pixels, unnorm_key="leg")
    with pytest.raises(UserError, match="choose one of: arm, hand"):
        model.predict_action(ids, pixels, norm_stats=STATS | {"hand": STATS["arm"]})
    with pytest.raises(UserError, match="expected a list q01 in the statistics, found none"):
        model.predict_action(ids, pixels, norm_stats={"arm": {"action": {"mean": [0.0]}}})
    with pytest.raises(UserError, match="expected action statistics of 'arm', found none"):
        model.predict_action(ids, pixels, norm_stats={"arm": {"mean": [0.0]}})
    with pytest.raises(UserError, match="expected unpadded prompts"):
        model.predict_action(ids, pixels, attention_mask=torch.tensor([[1, 1, 1, 1, 1, 0]]))
    with pytest.raises(UserError, match="expected one prompt, found 2"):
        model.predict_action(inputs["input_ids"], inputs["pixel_values"])
    with pytest.raises(UserError, match="expected pixel values of 28x28, found 14x14"):
        model.predict_action(ids, pixels[..., :14, :14])
    with pytest.raises(UserError, match=r"expected pixel values \[batch, 6 x images"):
        model.predict_action(ids, pixels[:, :5])


@torch.no_grad()
def test_several_images(tmp_path: Path) -> None:
    model = made(tmp_path / "model")
    pixels = batch(model)["pixel_values"]
    other = torch.roll(pixels, 1, dims=-1)
    features = model.vision_backbone(torch.cat([pixels, other], dim=1))
    assert tuple(features.shape) == (2, 8, 40)
    assert torch.allclose(features[:, 4:], model.vision_backbone(other), atol=1e-6)


@pytest.mark.parametrize("head", ["l1", "discrete"])
def test_oft_trains_everything_it_has(tmp_path: Path, head: str) -> None:
    oft = OftSpec(action_dim=4, action_chunk=3, proprio_dim=5, head=head)
    model = made(tmp_path / "model", oft=oft)
    inputs = batch(model, actions=12) | {"proprio": torch.randn(2, 5)}
    model(**inputs, actions=torch.zeros(2, 3, 4)).loss.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    actions = model.predict_action(
        inputs["input_ids"][:1, :6], inputs["pixel_values"][:1], proprio=inputs["proprio"][:1]
    )
    assert actions.shape == (3, 4)
    with pytest.raises(UserError, match="expected 12 action labels in each sample"):
        model(**batch(model, actions=8))
    with pytest.raises(UserError, match="expected proprio dimensions: 5, found none"):
        model(**batch(model, actions=12))


def test_padding_changes_no_oft_prediction(tmp_path: Path) -> None:
    model = made(tmp_path / "model", oft=OftSpec(action_dim=4, action_chunk=2))
    inputs = batch(model, actions=8)
    mask = torch.ones_like(inputs["input_ids"])
    tail = torch.full((2, 3), 32000)
    padded = inputs | {
        "input_ids": torch.cat([inputs["input_ids"], tail], dim=1),
        "labels": torch.cat([inputs["labels"], torch.full_like(tail, -100)], dim=1),
        "attention_mask": torch.cat([mask, torch.zeros_like(tail)], dim=1),
    }
    with torch.no_grad():
        plain, wide = model(**inputs).predicted_actions, model(**padded).predicted_actions
    assert torch.allclose(plain, wide, atol=1e-5)


def test_an_oft_head_is_not_exchanged_silently(tmp_path: Path) -> None:
    model = made(tmp_path / "model", oft=OftSpec(action_dim=4, action_chunk=2))
    save_pretrained(model, tmp_path / "out")
    with pytest.raises(UserError, match="expected the OFT head of"):
        load_pretrained(tmp_path / "out", oft=OftSpec(action_dim=4, action_chunk=8))


def test_an_adapter_goes_on_with_its_oft_head(tmp_path: Path) -> None:
    """`adapter.resume_from` is the adapter and the head beside it, or is refused."""
    words = ["data.source=none", "action_head.kind=oft", "adapter.method=lora", "adapter.r=2"]

    def adapted(*more: str, size: int = 4) -> Any:
        model = made(tmp_path / "model", oft=OftSpec(action_dim=size, action_chunk=2))
        return trainable(model, resolve(PROFILE, {}, [*words, *more])[0])

    before, resume = adapted(), f"adapter.resume_from={tmp_path}"
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0)
    before.save_pretrained(tmp_path)
    state = plain(before).state_dict()
    save_file({n: value for n, value in state.items() if is_head(n)}, tmp_path / OFT_WEIGHTS)
    after = plain(adapted(resume)).state_dict()
    assert all(torch.equal(after[name], value) for name, value in state.items())
    with pytest.raises(UserError, match=f"{OFT_WEIGHTS}: expected the head of action_head"):
        adapted(resume, size=5)
    with pytest.raises(UserError, match=r"adapter\.r: expected 2, as the adapter in .*, found 3"):
        adapted(resume, "adapter.r=3")
    longer = asdict(OftSpec(action_dim=4, action_chunk=3))
    (tmp_path / OFT_CONFIG).write_text(json.dumps(longer))
    with pytest.raises(UserError, match="action_chunk=2.*found.*action_chunk=3"):
        adapted(resume)
    (tmp_path / OFT_CONFIG).unlink()
    (tmp_path / OFT_WEIGHTS).unlink()
    with pytest.raises(UserError, match="expected the head that was trained with the adapter"):
        adapted(resume)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_base_with_adapter(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model

    dense = made(tmp_path / "model")
    save_pretrained(dense, tmp_path / "out")
    model = load_pretrained(
        tmp_path / "out", quantisation=Quantisation(kind, compute=torch.float32)
    ).train()
    assert model.language_model.model.layers[0].mlp.up_proj.weight.dtype in (
        torch.uint8,
        torch.int8,
    )
    assert model.language_model.lm_head.weight.dtype == torch.float32
    inputs = batch(model)
    with torch.no_grad():
        assert float(model(**inputs).loss) == pytest.approx(float(dense(**inputs).loss), rel=0.05)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    adapted(**inputs).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_attention_must_be_known(tmp_path: Path) -> None:
    save_pretrained(made(tmp_path / "model"), tmp_path / "out")
    with pytest.raises(UserError, match="expected attn of eager, sdpa, flash_attention_2"):
        load_pretrained(tmp_path / "out", attn="fast")
