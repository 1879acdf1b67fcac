"""Shapes: parameters counted as transformers has them, and where a shape is found."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedConfig

from tests.support.fake_hub import GOOD_TOKEN, FakeHub
from tests.support.planning import LLAMA_1B, OFFLINE, SIZES, TABLE, N, of, profile
from workloads.config.merge import resolve
from workloads.config.sections import Model
from workloads.errors import UserError
from workloads.plan import known_shapes
from workloads.plan.estimate import estimate
from workloads.plan.known_shapes import shape_of
from workloads.plan.shapes import from_fields

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[3]
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


# Parameters


TEXT_MODELS = [
    transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    transformers.LlamaConfig(
        **SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=24
    ),
    transformers.MistralConfig(**SIZES, num_key_value_heads=2, head_dim=16),
    transformers.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    transformers.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    transformers.Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=32),
    transformers.GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=32),
    transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=32),
    transformers.StableLmConfig(**SIZES, use_qkv_bias=True, num_key_value_heads=2),
    transformers.StableLmConfig(
        **SIZES, qk_layernorm=True, use_parallel_residual=True, num_key_value_heads=2
    ),
    transformers.GPTNeoXConfig(**SIZES),
    transformers.GPTNeoXConfig(**SIZES, attention_bias=False, tie_word_embeddings=True),
    transformers.Phi3Config(**SIZES, **SPECIAL, num_key_value_heads=2),
]


@pytest.mark.parametrize("config", TEXT_MODELS, ids=lambda config: config.model_type)
def test_counts_equal_those_of_transformers(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = from_fields(json.loads(config.to_json_string()))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    matrices = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inner = [matrix for matrix in matrices if matrix is not model.get_output_embeddings()]
    assert shape.linear_parameters == sum(item.weight.numel() for item in inner)
    assert shape.embedding == SIZES["vocab_size"] * SIZES["hidden_size"] * (2 - shape.tied)
    names = {name.rsplit(".", 1)[-1] for name, one in model.named_modules() if one in inner}
    assert {linear.name for linear in shape.linears} == names


@pytest.mark.parametrize(
    ("kind", "vision"),
    [
        ("Qwen2_5_VL", {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}),
        ("Qwen2VL", {"embed_dim": 32, "hidden_size": 64}),
    ],
)
def test_counts_of_models_that_see(kind: str, vision: dict[str, int]) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**SIZES, **SPECIAL, "num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={"depth": 2, "num_heads": 2, **vision},
    )
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    shape = from_fields(json.loads(config.to_json_string()))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


CLIP = transformers.CLIPVisionConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
    image_size=56, patch_size=14, num_channels=4, projection_dim=32,
)  # fmt: skip
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 56, "patch_size": 14,
}  # fmt: skip
LLAMA = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
QWEN = transformers.Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
TOWER = transformers.SiglipVisionConfig(**SIGLIP)
HEADLESS = transformers.SiglipVisionConfig(**SIGLIP, vision_use_head=False)
MISTRAL = transformers.MistralConfig(**SIZES, num_key_value_heads=2, head_dim=16)
LLAVAS = [
    transformers.LlavaConfig(vision_config=CLIP, text_config=LLAMA),
    transformers.LlavaConfig(vision_config=CLIP, text_config=QWEN, vision_feature_layer=[-2, -1]),
    transformers.LlavaConfig(
        vision_config=CLIP, text_config=LLAMA, multimodal_projector_bias=False
    ),
    transformers.LlavaConfig(vision_config=TOWER, text_config=LLAMA),
    transformers.LlavaConfig(),
    transformers.LlavaNextConfig(vision_config=CLIP, text_config=MISTRAL),
    transformers.LlavaNextConfig(),
    transformers.LlavaOnevisionConfig(vision_config=HEADLESS, text_config=QWEN),
    transformers.LlavaOnevisionConfig(),
]


@pytest.mark.parametrize("config", LLAVAS, ids=lambda config: config.model_type)
def test_counts_of_llavas(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    shape = from_fields(json.loads(config.to_json_string()))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    matrices = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inner = [matrix for matrix in matrices if matrix is not model.get_output_embeddings()]
    assert shape.linear_parameters == sum(item.weight.numel() for item in inner)
    names = {name.rsplit(".", 1)[-1] for name, one in model.named_modules() if one in inner}
    assert {linear.name for linear in shape.linears} == names


@pytest.mark.parametrize(
    "fields",
    [
        # As llava-hf/llava-1.5-7b-hf and llava-hf/llava-v1.6-mistral-7b-hf leave out what is usual.
        {
            "model_type": "llava",
            "text_config": {"model_type": "llama", "vocab_size": 32064},
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
                "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
                "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
            },
        },
        {"model_type": "llava_next", "text_config": {"model_type": "mistral"}},
    ],
)  # fmt: skip
def test_published_llavas_leave_fields_out(fields: dict[str, Any]) -> None:
    kind = {"llava": transformers.LlavaConfig, "llava_next": transformers.LlavaNextConfig}
    config = kind[fields["model_type"]](**json.loads(json.dumps(fields)))
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    assert from_fields(fields).parameters == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_pictures_in_tiles_cost_their_towers_more() -> None:
    """512 x 512 are 2 x 2 tiles and the whole; one of LLaVA-1.5 is scaled to one square."""
    kinds = {"llava": 1, "llava_next": 5}
    for kind, tiles in kinds.items():
        assert from_fields({"model_type": kind}).towers[0].patches == tiles * (24 * 24 + 1)
    assert from_fields({"model_type": "llava_onevision"}).towers[0].patches == 5 * 27 * 27


def test_the_demo_model_is_planned() -> None:
    shape, _ = shape_of(Model(name="data/demo/tiny-llava"), OFFLINE)
    fields = json.loads(Path("data/demo/tiny-llava/config.json").read_text())
    config = transformers.LlavaConfig(**fields)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.adapted(["linear_1"])[0].count == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "llava", "text_config": {"model_type": "mixtral"}}, "'mixtral'"),
        ({"model_type": "llava", "vision_config": {"model_type": "pixtral"}}, "'pixtral'"),
    ],
)
def test_llavas_of_other_parts_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        from_fields(fields)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("elyza/Llama-3-ELYZA-JP-8B", 8_030_261_248),
        ("stabilityai/japanese-stablelm-3b-4e1t-instruct", 2_795_443_200),
        ("rinna/japanese-gpt-neox-3.6b-instruction-sft", 3_607_245_312),
        ("cyberagent/DeepSeek-R1-Distill-Qwen-32B-Japanese", 32_763_876_352),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen2-VL-2B-Instruct", 2_208_985_600),
        ("openvla/openvla-7b", 7_541_237_184),
        ("google/gemma-2-2b-it", 2_614_341_888),
        ("google/paligemma-3b-pt-224", 2_923_466_480),
        ("google/paligemma2-3b-pt-224", 3_032_242_416),
        ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 256_484_928),
        ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 507_482_304),
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2_246_784_880),
        ("HuggingFaceTB/SmolVLM-256M-Instruct", 256_484_928),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("somebody/llama-3.2-1b", 1_235_814_400),
    ],
)
def test_known_models_need_no_network(name: str, count: int) -> None:
    shape, source = shape_of(Model(name=name), {**OFFLINE, "HF_HOME": "/nowhere"})
    assert shape.parameters == count
    assert source == "table of known models"


def test_parameters_by_kind_add_up() -> None:
    shape, _ = shape_of(Model(name=LLAMA_1B), OFFLINE)
    kinds = shape.parameters_by_kind
    layer = 2 * 2048 * 2048 + 2 * 2048 * 512, 3 * 2048 * 8192
    assert (kinds["attention"], kinds["mlp"]) == tuple(16 * size for size in layer)
    assert (kinds["embedding"], kinds["head"], kinds["vision"]) == (TABLE, 0, 0)
    assert kinds["other"] == 33 * 2048
    assert sum(kinds.values()) == N


@pytest.mark.parametrize("name", ["data/demo/tiny-openvla", "data/demo/reach-openvla"])
def test_openvla_of_one_tower_and_of_two_is_counted_as_it_is_built(name: str) -> None:
    from workloads.vla.model import random_init

    shape, _ = shape_of(Model(name=name), OFFLINE)
    built = random_init(name, 0)
    assert shape.parameters == sum(parameter.numel() for parameter in built.parameters())
    matrices = [module.weight for module in built.modules() if isinstance(module, torch.nn.Linear)]
    frozen = [weight.numel() for weight in matrices if not weight.requires_grad]
    assert shape.frozen == sum(frozen) > 0


def test_kosmos_and_every_head_are_counted_as_they_are_built() -> None:
    from transformers import AutoConfig

    from workloads.engine.pretrained.load import IMAGES
    from workloads.vla.robovlms.modeling import HEADS
    from workloads.vla.robovlms.spec import HeadSize, parameters

    shape, _ = shape_of(Model(name="microsoft/kosmos-2-patch14-224"), OFFLINE)
    assert (shape.parameters, shape.image_tokens) == (1_664_485_376, 64)
    folder = "data/demo/tiny-kosmos2"
    shape, _ = shape_of(Model(name=folder), OFFLINE)
    built = IMAGES.factory.from_config(AutoConfig.from_pretrained(folder))
    assert shape.parameters == sum(parameter.numel() for parameter in built.parameters())
    for kind, head in HEADS.items():
        for gripper in (True, False):
            size = HeadSize(32, hidden=48, gripper=gripper)
            assert parameters(kind, size) == sum(
                parameter.numel() for parameter in head(size).parameters()
            )


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("generation", [1, 2])
def test_paligemma_is_counted_as_it_is_built(head: bool, generation: int) -> None:
    from transformers import AutoConfig

    from tests.support.tiny_backbones import PALIGEMMA, PALIGEMMA2
    from workloads.engine.pretrained.load import IMAGES

    fields = PALIGEMMA if generation == 1 else PALIGEMMA2
    tiny = {**fields, "vision_config": {**fields["vision_config"], "vision_use_head": head}}
    built = IMAGES.factory.from_config(AutoConfig.for_model(**tiny))
    own = from_fields(tiny)
    assert own.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert own.image_tokens == 16


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
@pytest.mark.parametrize("tied", [False, True])
def test_smolvlm_is_counted_as_it_is_built(kind: str, tied: bool) -> None:
    from transformers import AutoConfig

    from tests.support.tiny_backbones import SMOLVLM
    from workloads.engine.pretrained.load import IMAGES

    tiny = {**SMOLVLM, "model_type": kind, "tie_word_embeddings": tied}
    built = IMAGES.factory.from_config(AutoConfig.for_model(**tiny))
    own = from_fields(tiny)
    assert own.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert own.image_tokens == 4


def test_images_of_a_policy_on_qwen_are_squares() -> None:
    """As its adapter makes them: 224 pixels a side, each between two marks."""
    from transformers import AutoConfig

    from tests.support.tiny_backbones import QWEN
    from workloads.engine.pretrained.load import IMAGES

    config, _ = resolve(ROOT / "profiles/recipes/policy-qwen.yaml", {})
    shape, _ = shape_of(config.model, OFFLINE)
    seen = config.seen_shape(shape)
    assert (seen.image_tokens, seen.towers[0].patches) == (2 * (64 + 2), 8 * 2 * 256)
    tiny = from_fields(QWEN)
    built = IMAGES.factory.from_config(AutoConfig.for_model(**QWEN))
    assert tiny.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert config.seen_shape(tiny).image_tokens == 2 * (16 + 2)


# Inputs and outputs of the matrices of OpenVLA's two last tower blocks and its pool.
UNUSED_SIDES = 53_184


def test_openvla_adapter_has_the_published_size() -> None:
    """peft's all-linear there also wraps the head and two convolutions, of rank 32 each, and the
    matrices that nothing computes, which ours leaves out."""
    shape, _ = shape_of(Model(name="openvla/openvla-7b"), OFFLINE)
    head, convolutions = 4096 + 32_064, 2 * 3 * 14 * 14 + 1024 + 1152
    everywhere = shape.adapted({matrix.name for matrix in shape.linears})
    count = sum(matrix.adapter_parameters(32) for matrix in everywhere)
    assert count + 32 * (head + convolutions) == 110_828_288
    ours = sum(matrix.adapter_parameters(32) for matrix in shape.adapted(["all-linear"]))
    assert count - ours == 32 * UNUSED_SIDES
    assert shape.adapted(["lm_head"])[0].adapter_parameters(32) == 32 * head


def test_targets_may_be_paths() -> None:
    shape, _ = shape_of(Model(name=LLAMA_1B), OFFLINE)
    assert [matrix.name for matrix in shape.adapted(["self_attn.q_proj"])] == ["q_proj"]
    assert shape.adapted(["query_key_value"]) == ()


@pytest.mark.parametrize("fields", [{}, {"model_type": "mixtral"}, {"model_type": "llama"}])
def test_what_cannot_be_counted_is_said(fields: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = of(tmp_path, model=str(tmp_path))
    assert found.total is None
    assert "expected" in (found.unknown or "") and "config.json" in (found.unknown or "")


# Where shapes come from


def write_config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"model_type": "llama", **SIZES, **changes}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_local_folder(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "tiny")
    found = of(tmp_path, model=str(folder))
    assert found.shape is not None and found.shape.vocab == 500
    assert found.source == f"{folder}/config.json"


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_damaged_local_config(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert str(tmp_path / "config.json") in (of(tmp_path, model=str(tmp_path)).unknown or "")


def test_folder_without_config(tmp_path: Path) -> None:
    found = of(tmp_path, model=str(tmp_path))
    assert "point model.name at a folder with one" in (found.unknown or "")


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_hub_cache_comes_before_the_table(variable: str, tmp_path: Path) -> None:
    below = {
        "HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub",
        "HOME": ".cache/huggingface/hub",
    }  # fmt: skip
    repository = tmp_path / below[variable] / "models--meta-llama--Llama-3.2-1B-Instruct"
    write_config(repository / "snapshots" / "abc", vocab_size=777)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    shape, source = shape_of(Model(name=LLAMA_1B), {variable: str(tmp_path)})
    assert (shape.vocab, source) == (777, "config.json in the hub's cache")
    commit = Model(name=LLAMA_1B, revision="abc")
    assert shape_of(commit, {variable: str(tmp_path)})[0].vocab == 777
    other = Model(name=LLAMA_1B, revision="def")
    assert shape_of(other, {variable: str(tmp_path)})[0].vocab == 128_256


def test_config_alone_is_fetched_from_the_hub(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "repository")
    (folder / "model.safetensors").write_bytes(b"large")
    config = profile(tmp_path, model="owner/fresh")
    with FakeHub({"owner/fresh": folder}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        found = estimate(config, env=env)
        assert found.shape is not None and found.source == "config.json on the hub"
        assert hub.requests == [("GET", "owner/fresh/resolve/main/config.json")]


@pytest.mark.parametrize("token", [None, GOOD_TOKEN])
def test_gated_model(token: str | None, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "repository")
    with FakeHub({"owner/gated": folder}, gated=["owner/gated"]) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)} | (
            {"HF_TOKEN": token} if token else {}
        )
        found = estimate(profile(tmp_path, model="owner/gated"), env=env)
    if token:
        assert found.unknown is None
    else:
        assert "401" in (found.unknown or "") and "HF_TOKEN" in (found.unknown or "")


def test_no_such_model(tmp_path: Path) -> None:
    with FakeHub({}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": GOOD_TOKEN}
        found = estimate(profile(tmp_path, model="owner/typo"), env=env)
    assert "correct model.name" in (found.unknown or "")
    offline = estimate(profile(tmp_path, model="owner/typo"), env=OFFLINE)
    assert "HF_HUB_OFFLINE" in (offline.unknown or "")
    no_name = estimate(profile(tmp_path, model="no/such/folder"), env={})
    assert "no such folder" in (no_name.unknown or "")


def test_a_silent_hub_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = known_shapes._PATIENCE
    monkeypatch.setattr(known_shapes, "_PATIENCE", 0.2)
    with FakeHub({"owner/fresh": tmp_path}) as hub:
        hub.mood = "silent"
        start = time.monotonic()
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        found = estimate(profile(tmp_path, model="owner/fresh"), env=env)
        assert time.monotonic() - start < usual
    assert found.total is None and "check the network" in (found.unknown or "")


@pytest.fixture
def redirecting() -> Iterator[tuple[str, list[str | None]]]:
    """A hub that sends every request on to another address, where the tokens are noted."""
    seen: list[str | None] = []
    body = json.dumps({"model_type": "llama", **SIZES}).encode()

    class Storage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    class Hub(Storage):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{servers[0].server_port}/stored")
            self.end_headers()

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Storage, Hub)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{servers[1].server_port}", seen
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_token_stays_with_the_hub(
    redirecting: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    endpoint, seen = redirecting
    env = {"HF_ENDPOINT": endpoint, "HF_TOKEN": GOOD_TOKEN, "HF_HOME": str(tmp_path)}
    assert estimate(profile(tmp_path, model="owner/moved"), env=env).unknown is None
    assert seen == [None]
