"""What ends an answer is the same for training, generation and export, whatever the template."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GenerationConfig

from tests.support.chat_models import FAMILIES, chat_tokenizer, write_chat_model
from tests.support.tiny_llama import make_model
from workloads.engine.generate import generate
from workloads.engine.pretrained.chat import answer_end, answer_end_ids, stop_ids, with_stops
from workloads.engine.pretrained.files import lasting_name, positions
from workloads.json_files import read_json

pytestmark = pytest.mark.unit
ENDS = {
    "base-chatml": "<|im_end|>",
    "chatml": "<|im_end|>",
    "tools": "<|im_end|>",
    "turns": "<end_of_turn>",
    "three": "</s>",
    "ja": "</s>",
    "dated": "<|eot|>",
    "think": "<|eos|>",
    "plain": "",
}


@pytest.mark.parametrize("family", ENDS)
def test_the_end_that_is_learnt_is_one_that_generation_stops_at(family: str) -> None:
    """L-F1"""
    tokenizer = chat_tokenizer(family)
    assert answer_end(tokenizer) == ENDS[family]
    learnt = answer_end_ids(tokenizer)
    assert tokenizer.decode(learnt) == (ENDS[family] or tokenizer.eos_token)
    own = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    stops = stop_ids(tokenizer, own)
    assert set(learnt) <= set(stops) and tokenizer.eos_token_id in stops
    made = with_stops(tokenizer, own)
    found = made.eos_token_id
    assert ([found] if isinstance(found, int) else found) == stops
    assert own.eos_token_id == tokenizer.eos_token_id  # the model's own is left alone


def test_generation_stops_where_the_template_ends_a_turn() -> None:
    """L-F1: a model that has learnt <|im_end|> and whose own config names another end."""
    tokenizer = chat_tokenizer("base-chatml")
    model = make_model(vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=0, bos_token_id=0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        # Whatever is asked, the answer is `<|im_end|>` and nothing before it.
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.register_forward_hook(lambda *_: _only(end, len(tokenizer), _[2]))
    assert generate(model, tokenizer, ["hi"], 5, 1) == [""]
    assert make_model().generation_config.eos_token_id == 2


def _only(token: int, size: int, logits: torch.Tensor) -> torch.Tensor:
    made = torch.zeros(*logits.shape[:-1], size)
    made[..., token] = 1.0
    return made


def test_a_generation_config_is_made_where_there_is_none() -> None:
    tokenizer = chat_tokenizer("turns")
    made = with_stops(tokenizer, None)
    ids = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert made.eos_token_id == ids and made.pad_token_id == tokenizer.pad_token_id


def test_a_template_that_cannot_be_tried_ends_with_the_tokenizers_own_token() -> None:
    named = chat_tokenizer("named")
    assert answer_end(named) == "" and answer_end_ids(named) == [named.eos_token_id]


def test_positions_under_every_name(tmp_path: Path) -> None:
    """L-F10"""
    folder = write_chat_model(tmp_path / "short", "short")
    assert positions(read_json(folder / "config.json")) == 32
    assert positions(AutoConfig.from_pretrained(folder).to_dict()) == 32
    assert positions({"text_config": {"max_position_embeddings": 7}}) == 7
    assert positions({"max_seq_len": 9}) == 9 and positions({"n_ctx": 3}) is None


def test_a_local_base_is_named_by_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-F14"""
    (tmp_path / "trained").mkdir()
    monkeypatch.chdir(tmp_path)
    assert lasting_name("trained") == str(tmp_path / "trained")
    assert lasting_name("owner/model") == "owner/model"


def test_all_families_have_an_end() -> None:
    assert set(ENDS) | {"named", "short"} == set(FAMILIES)
