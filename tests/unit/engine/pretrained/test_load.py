"""Loading language models: where from, in which type, with which attention, and what goes wrong."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tests.support.fake_hub import FakeHub
from tests.support.tiny_llama import make_model, make_tokenizer, write_tiny
from workloads.config.sections import Adapter, Model, Train
from workloads.engine.pretrained.adapter import add_adapter, save_adapters
from workloads.engine.pretrained.base import Base, candidates, find_base, locate, resolve
from workloads.engine.pretrained.files import Reporter, choose_attention, weights_dtype
from workloads.errors import Retry, UserError
from workloads.llm import model as llm_model
from workloads.llm.config import LlmConfig
from workloads.llm.model import choose_padding, load_for_use

pytestmark = pytest.mark.unit


def config_for(name: object, **changes: Any) -> LlmConfig:
    settings: dict[str, Any] = {
        "workload": "llm",
        "name": "test",
        "model": {"name": str(name), **changes.pop("model", {})},
        "data": {"source": "rows.jsonl"},
        "train": {"precision": "fp32"},
        **changes,
    }
    return LlmConfig.model_validate(settings)


def load_model(config: LlmConfig, report: Reporter) -> PreTrainedModel:
    return llm_model.load_model(find_base(config.model, report), config, report)


def load_tokenizer(name: object) -> PreTrainedTokenizerBase:
    return llm_model.load_tokenizer(find_base(Model(name=str(name)), print), print)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    folder = write_tiny(tmp_path / "served")
    (folder / "modeling_evil.py").write_text("raise SystemExit('code was run')")
    (folder / "pytorch_model.bin").write_bytes(b"pickles")
    with FakeHub({"owner/tiny": folder, "owner/gated": folder}, gated=["owner/gated"]) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server


def test_a_folder_gives_its_weights_and_keeps_its_name(tiny: Path) -> None:
    told: list[str] = []
    model = load_model(config_for(tiny), told.append)
    expected = make_model().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.config.name_or_path == str(tiny)
    assert told == ["attention: sdpa (no flash: it needs a CUDA GPU, and none is here)"]


def test_a_hub_model_comes_without_code_or_pickles(server: FakeHub) -> None:
    model = load_model(config_for("owner/tiny"), print)
    tokenizer = load_tokenizer("owner/tiny")
    assert model.config.name_or_path == "owner/tiny"
    assert tokenizer("ab")["input_ids"] == make_tokenizer()("ab")["input_ids"]
    fetched = {path.rpartition("/")[2] for method, path in server.requests if method == "GET"}
    assert "model.safetensors" in fetched
    assert not fetched & {"modeling_evil.py", "pytorch_model.bin"}


def test_random_weights_follow_from_the_seed(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bare", weights=False)
    wish: dict[str, Any] = {"model": {"random_init": True}}
    state = torch.random.get_rng_state()
    first = load_model(config_for(folder, **wish), print)
    assert torch.equal(state, torch.random.get_rng_state())
    again = load_model(config_for(folder, **wish), print)
    other = load_model(config_for(folder, **wish, train={"seed": 7, "precision": "fp32"}), print)
    weight = "model.embed_tokens.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_a_folder_without_weights_needs_random_init(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "bare", weights=False)
    with pytest.raises(UserError, match=r"model\.random_init=true"):
        load_model(config_for(folder), print)
    (folder / "pytorch_model.bin").write_bytes(b"pickles")
    with pytest.raises(UserError, match="pickled"):
        load_model(config_for(folder), print)


@pytest.mark.parametrize(
    ("precision", "master", "method", "expected"),
    [
        ("bf16", "fp32", "full", torch.float32),
        ("bf16", "compute", "full", torch.bfloat16),
        ("bf16", "fp32", "lora", torch.bfloat16),
        ("fp16", "fp32", "full", torch.float32),
        ("fp32", "compute", "full", torch.float32),
    ],
)
def test_types_of_weights(
    tiny: Path, precision: str, master: str, method: str, expected: torch.dtype
) -> None:
    train = {"precision": precision, "master_weights": master}
    model = load_model(config_for(tiny, train=train, adapter={"method": method}), print)
    assert {value.dtype for value in model.parameters()} == {expected}


def test_fp16_weights_cannot_be_trained_in_place() -> None:
    train = Train.model_validate({"precision": "fp16", "master_weights": "compute"})
    with pytest.raises(UserError, match="master_weights=fp32"):
        weights_dtype(train, Adapter())


def attention(wanted: str = "auto", **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "model_class": LlamaForCausalLM,
        "dtype": torch.bfloat16,
        "capability": (8, 9),
        "has_kernel": lambda: True,
    }
    return choose_attention(wanted, **{**settings, **changes})


class OldModel:
    _supports_sdpa = False
    _supports_flash_attn = False


def test_attention_is_flash_where_it_can_be() -> None:
    assert attention().name == "flash_attention_2"
    assert attention("eager").name == "eager"
    assert attention("sdpa").name == "sdpa"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"capability": None}, "needs a CUDA GPU"),
        ({"capability": (7, 0)}, "has 7.0"),
        ({"dtype": torch.float32}, "precision is fp32"),
        ({"has_kernel": lambda: False}, "flash-attn"),
    ],
)
def test_attention_falls_back_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    found = attention(**changes)
    assert found.name == "sdpa" and reason in found.line()
    with pytest.raises(UserError, match="model.attention=auto"):
        attention("flash_attention_2", **changes)


def test_attention_of_a_model_that_knows_only_eager() -> None:
    assert attention(model_class=OldModel).name == "eager"
    with pytest.raises(UserError, match="eager"):
        attention("sdpa", model_class=OldModel)


def test_a_fallback_is_taken_and_each_failure_told(tmp_path: Path, server: FakeHub) -> None:
    bare = write_tiny(tmp_path / "bare", weights=False)
    names = ["owner/nothing", str(bare), "owner/tiny"]
    told: list[str] = []
    model = Model.model_validate({"name": "owner/gated", "fallbacks": names})
    assert find_base(model, told.append).model.name == "owner/tiny"
    assert ["gated" in told[0], "neither" in told[1], "random_init" in told[2]] == [True] * 3
    assert "using owner/tiny (llama) instead of owner/gated" in told[3]


def test_when_all_fail_every_reason_is_given(tmp_path: Path, server: FakeHub) -> None:
    model = Model.model_validate({"name": "owner/gated", "fallbacks": ["owner/nothing"]})
    with pytest.raises(UserError, match="(?s)none of 2 models.*gated.*neither"):
        find_base(model, print)
    server.mood = "broken"
    with pytest.raises(Retry):
        find_base(model, print)


def test_a_fallback_brings_no_code_of_its_own(tmp_path: Path) -> None:
    commit = "0" * 40
    wish = {"name": "a", "fallbacks": ["b"], "trust_remote_code": True, "revision": commit}
    first, second = candidates(Model.model_validate(wish))
    assert (first.trust_remote_code, first.revision) == (True, commit)
    assert (second.trust_remote_code, second.revision) == (False, None)


def test_a_base_is_one_model_with_its_folder_and_config(tiny: Path) -> None:
    wish = {"fallbacks": [str(tiny)]}
    base: Base[Any] = resolve(config_for(tiny.parent / "nothing", model=wish), print)
    assert base.model.name == str(tiny) and base.model.fallbacks == ()
    assert base.folder == tiny and base.config.vocab_size == 261


def test_an_adapter_of_the_hub_comes_with_its_weights(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = add_adapter(make_model(), Adapter.model_validate({"method": "lora", "r": 4}))
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            if "lora_B" in name:
                value.fill_(0.01)
    adapter.peft_config["default"].base_model_name_or_path = str(tiny)
    save_adapters(adapter, tmp_path / "adapter")
    with FakeHub({"owner/adapter": tmp_path / "adapter"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        used = load_for_use("owner/adapter", "fp32", print)
    inputs = torch.arange(5, 25).reshape(2, 10)
    assert torch.allclose(used.model(inputs).logits, adapter.eval()(inputs).logits, atol=1e-5)
    assert used.base.model.name == str(tiny) and used.adapter is not None


def test_a_missing_folder_names_the_nearest(tiny: Path) -> None:
    with pytest.raises(UserError, match=f"did you mean the folder {tiny}"):
        locate(Model(name=str(tiny.parent / "tinny")), print, weights=False)


def test_a_damaged_weights_file_is_named(tiny: Path) -> None:
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_model(config_for(tiny), print)


def test_missing_or_other_weights_are_refused(tiny: Path) -> None:
    settings = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"model\.layers\.2"):
        load_model(config_for(tiny), print)
    (tiny / "config.json").write_text(json.dumps({**settings, "intermediate_size": 48}))
    with pytest.raises(UserError):
        load_model(config_for(tiny), print)


def test_code_is_refused_unless_allowed(tiny: Path) -> None:
    settings = json.loads((tiny / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}
    (tiny / "config.json").write_text(json.dumps({**settings, **own}))
    (tiny / "evil.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(UserError, match="'evil'"):
        load_model(config_for(tiny), print)
    own["auto_map"] = {"AutoConfig": "other/place--evil.Config"}
    (tiny / "config.json").write_text(json.dumps({**settings, **own}))
    trusting = {"trust_remote_code": True, "revision": "0" * 40}
    with pytest.raises(UserError, match="another repository, other/place"):
        load_model(config_for(tiny, model=trusting), print)


def test_a_tokenizer_larger_than_the_model_is_refused(tiny: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(tiny)
    with pytest.raises(UserError, match="at most 261 tokens.*found 262"):
        load_tokenizer(tiny)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="expected a tokenizer"):
        load_tokenizer(tmp_path)


def test_padding_is_not_the_end_of_an_answer() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    assert "<|pad|>" in choose_padding(tokenizer)
    assert tokenizer.pad_token == "<|pad|>"
    assert choose_padding(tokenizer) == ""
    tokenizer.pad_token = tokenizer.eos_token
    choose_padding(tokenizer)
    assert tokenizer.pad_token == "<|pad|>"


def test_padding_with_the_end_token_is_said() -> None:
    inner = Tokenizer(models.WordLevel({"<|end|>": 0, "a": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    assert "stays a label" in choose_padding(tokenizer)
    assert tokenizer.pad_token == "<|end|>"


@pytest.mark.parametrize("random_init", [False, True])
def test_published_generation_settings_do_not_break_checkpoints(
    tiny: Path, tmp_path: Path, random_init: bool
) -> None:
    path = tiny / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.6}))
    model = load_model(config_for(tiny, model={"random_init": random_init}), print)
    model.save_pretrained(tmp_path / "checkpoint")
    # Without sampling a temperature has no effect: it is left out, and the model stays greedy.
    assert model.generation_config.temperature in (None, 1.0)
    assert model.generation_config.do_sample is not True


def test_loading_for_use(tiny: Path) -> None:
    loaded = load_for_use(str(tiny), "bf16", print)
    assert loaded.model.dtype == torch.bfloat16 and not loaded.model.training
    assert loaded.adapter is None and loaded.base.folder == tiny
