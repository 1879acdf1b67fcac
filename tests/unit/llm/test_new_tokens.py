"""Tokens that a profile adds: trained, exported, merged, gone on with, never left as they began."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.tiny_llama import make_config, write_tiny
from workloads import run as runs
from workloads.config.merge import Provenance
from workloads.engine.pretrained.adapter import adapters_alone, add_adapter, save_adapters
from workloads.engine.pretrained.base import find_base
from workloads.engine.pretrained.chat import stop_ids
from workloads.engine.pretrained.weights import load_shapes
from workloads.errors import UserError
from workloads.llm.check import prepared
from workloads.llm.config import LlmConfig
from workloads.llm.export import export, keep_skeleton
from workloads.llm.model import load_for_use, load_model, load_tokenizer
from workloads.run import Run
from workloads.run.integrity import publish, seal

pytestmark = pytest.mark.unit
WORDS, MARKS = ["東京タワー", "<sum>"], ["<|turn_end|>"]
OLD = make_config().vocab_size
LORA = {"method": "lora", "r": 4, "alpha": 8, "dropout": 0}
WHOLE = {False: ["embed_tokens", "lm_head"], True: ["embed_tokens"]}


def config_for(folder: Path, tied: bool = False, **changes: Any) -> LlmConfig:
    if not (folder / "base").exists():
        write_tiny(folder / "base", tie_word_embeddings=tied)
    (folder / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    own = {"name": str(folder / "base"), "add_tokens": WORDS, "add_special_tokens": MARKS}
    settings: dict[str, Any] = {
        "workload": "llm",
        "name": "test",
        "summary": "a test",
        "data": {"source": str(folder / "rows.jsonl")},
        "train": {"precision": "fp32"},
        **changes,
        "model": {**own, **changes.get("model", {})},
    }
    return LlmConfig.model_validate(settings)


def loaded(config: LlmConfig) -> tuple[Any, Any]:
    base = find_base(config.model, print)
    return load_model(base, config, print), load_tokenizer(base, print)


def inputs_of(tokenizer: Any) -> torch.Tensor:
    ids = tokenizer("東京タワー = <sum><|turn_end|>", return_tensors="pt")["input_ids"]
    assert (ids >= OLD).sum() == 3
    return torch.cat([ids, ids], dim=1)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


def trained(model: Any, ids: torch.Tensor) -> Any:
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def run_of(folder: Path, config: LlmConfig, model: Any, tokenizer: Any) -> Run:
    """A run of that model with a checkpoint of it as it is now."""
    run = Run(folder / "outputs" / "test" / "20260101-000000-abcd")
    runs.start(run, config, Provenance({}), {})
    plain = getattr(model, "base_model", model)
    keep_skeleton(find_base(config.model, print), getattr(plain, "model", model), tokenizer, run)
    staged = run.checkpoints / ".staging-1"
    staged.mkdir(parents=True)
    if config.adapter.method == "full":
        model.save_pretrained(staged)
    else:
        save_adapters(model, staged)
    seal(staged, {"step": 1})
    publish(staged, run.checkpoints / "checkpoint-1")
    return run


def test_each_new_token_begins_as_the_mean_of_its_pieces(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    model, tokenizer = loaded(config)
    assert len(tokenizer) == OLD + 3 == model.config.vocab_size
    number = tokenizer.convert_tokens_to_ids("<sum>")
    plain = AutoTokenizer.from_pretrained(tmp_path / "base")("<sum>")["input_ids"]
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert torch.allclose(table[number], table[plain].mean(0))
    assert tokenizer("a<sum>b")["input_ids"].count(number) == 1
    ids = tokenizer("東京タワー<|turn_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "東京タワー"
    again, _ = loaded(config)  # as every rank, and every attempt, makes them
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_rows_that_lie_unused_in_the_model_are_taken_first(tmp_path: Path) -> None:
    write_tiny(tmp_path / "base", vocab_size=OLD + 64)
    model, tokenizer = loaded(config_for(tmp_path))
    assert model.get_input_embeddings().num_embeddings == OLD + 64
    plain = AutoTokenizer.from_pretrained(tmp_path / "base")("<sum>")["input_ids"]
    table = model.get_input_embeddings().weight
    assert torch.allclose(table[tokenizer.convert_tokens_to_ids("<sum>")], table[plain].mean(0))


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_that_leaves_new_rows_alone_is_refused(tmp_path: Path, tied: bool) -> None:
    config = config_for(tmp_path, tied, adapter=LORA)
    fix = rf"set adapter\.modules_to_save=\[{', '.join(WHOLE[tied])}\]"
    with pytest.raises(UserError, match=fix):
        loaded(config)
    with pytest.raises(UserError, match=fix):  # `check --deep` reads no weights
        prepared(config, {"TATARA_CACHE": str(tmp_path / "cache")})
    wish = {**LORA, "modules_to_save": WHOLE[tied]}
    prepared(config_for(tmp_path, tied, adapter=wish), {"TATARA_CACHE": str(tmp_path / "cache")})


@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_model_is_exported_with_its_new_tokens(tmp_path: Path, tied: bool) -> None:
    config = config_for(tmp_path, tied)
    model, tokenizer = loaded(config)
    ids = inputs_of(tokenizer)
    run = run_of(tmp_path, config, trained(model, ids), tokenizer)
    export(run)
    assert AutoTokenizer.from_pretrained(run.final)("<sum>")["input_ids"] == [OLD + 1]
    assert torch.allclose(
        logits(AutoModelForCausalLM.from_pretrained(run.final), ids), logits(model, ids), atol=1e-5
    )


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_brings_its_new_rows(tmp_path: Path, tied: bool) -> None:
    config = config_for(tmp_path, tied, adapter={**LORA, "modules_to_save": WHOLE[tied]})
    model, tokenizer = loaded(config)
    ids = inputs_of(tokenizer)
    before = model.get_input_embeddings().weight[OLD:].clone()
    model = trained(add_adapter(model, config.adapter), ids)
    assert not torch.allclose(model.get_input_embeddings().weight[OLD:], before)
    run = run_of(tmp_path, config, model, tokenizer)
    assert export(run).kind == "adapter"
    used = load_for_use(str(run.final), "fp32", print)
    assert len(used.tokenizer) == OLD + 3
    assert torch.allclose(logits(used.model, ids), logits(model, ids), atol=1e-5)
    half = load_for_use(str(run.final), "bf16", print)
    assert torch.isfinite(logits(half.model, ids)).all()
    going_on = config.adapter.model_copy(update={"resume_from": str(run.final)})
    again = add_adapter(loaded(config)[0], going_on)
    assert torch.allclose(logits(again, ids), logits(model, ids), atol=1e-5)
    assert export(run, tmp_path / "whole", merge=True).kind == "merged"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.allclose(logits(merged, ids), logits(model, ids), atol=1e-4)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied


def test_the_trainers_own_save_writes_each_row_once(tmp_path: Path) -> None:
    """peft writes embeddings that have grown again, by names that no reader knows."""
    config = config_for(tmp_path, adapter={**LORA, "modules_to_save": WHOLE[False]})
    model = add_adapter(loaded(config)[0], config.adapter)
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    model.save_pretrained(plain)
    with adapters_alone(model):
        model.save_pretrained(ours)
    assert any("original_module" in name for name in load_shapes(plain))  # else: not needed now
    assert not any("original_module" in name for name in load_shapes(ours))
    with pytest.raises(ValueError, match=r"parallel\.strategy=ddp"):
        config_for(tmp_path, adapter=LORA, parallel={"strategy": "fsdp2"})


def test_a_mark_that_a_template_ends_turns_with_is_a_stop(tmp_path: Path) -> None:
    """L-F1 for a mark that the profile adds."""
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|turn_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    _, tokenizer = loaded(config_for(tmp_path, model={"chat_template": str(template)}))
    assert stop_ids(tokenizer) == [tokenizer.eos_token_id, OLD + 2]


def test_tokens_that_are_there_are_told_and_keep_their_ids(tmp_path: Path) -> None:
    config = config_for(tmp_path, model={"add_tokens": ["<|user|>", "<sum>"]})
    told: list[str] = []
    tokenizer = load_tokenizer(find_base(config.model, print), told.append)
    assert "'<|user|>' already" in told[0] and "2 new tokens" in told[1]
    assert (
        tokenizer.convert_tokens_to_ids("<|user|>")
        < OLD
        == tokenizer.convert_tokens_to_ids("<sum>")
    )
    with pytest.raises(ValueError, match="'a' is there twice"):
        config_for(tmp_path, model={"add_tokens": ["a"], "add_special_tokens": ["a"]})
    with pytest.raises(ValueError, match="no blanks around"):
        config_for(tmp_path, model={"add_tokens": [" a"]})
