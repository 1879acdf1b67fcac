"""The tiny models' folders: made from their rows, byte for byte, and usable."""

import re
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from workloads.llm.arithmetic import rows, write
from workloads.llm.tiny import FOLDERS, build

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "data" / "demo"


@pytest.mark.parametrize("name", FOLDERS)
def test_building_gives_the_committed_files(name: str, tmp_path: Path) -> None:
    build(tmp_path, FOLDERS[name], DEMO)
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    committed = {file.name: file.read_bytes() for file in (DEMO / name).iterdir()}
    assert made.keys() == committed.keys()
    for file, content in made.items():
        assert content == committed[file], f"{file}: run python -m workloads.llm.tiny"
    assert len(made["tokenizer.json"]) < 200_000


def test_arithmetic_rows_are_the_committed_ones_and_no_question_stands_twice(
    tmp_path: Path,
) -> None:
    write(tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_bytes() == (DEMO / "arithmetic.jsonl").read_bytes()
    made = rows()
    assert len({row["question"] for row in made}) == len(made) == 3200
    for row in made:
        sign, value = re.fullmatch(r".*<<(\d+[-+*]\d+)=(\d+)>>\2\n#### \2", row["answer"]).groups()
        assert str(eval(sign)) == value


def test_the_tokenizer_gives_every_text_back_with_single_digits() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "tiny-llama")
    text = "Kenji has 1208 円, <<12*3=36>>36 …\n#### -5 🐟"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == tokenizer.bos_token_id and tokenizer.unk_token is None
    numbers = tokenizer(" 1208 1", add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode([number]) for number in numbers]
    assert [piece for piece in pieces if piece.strip()] == ["1", "2", "0", "8", "1"]


def test_the_chat_template_marks_turns_and_what_the_assistant_says() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "tiny-llama")
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|begin|><|system|>S<|end|><|user|>Q<|end|><|assistant|>A<|end|>"
    asked = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert text == asked + "A<|end|>"
    with pytest.raises(Exception, match="expected role system, user or assistant, found robot"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "?"}], tokenize=False)


def test_model_and_tokenizer_belong_together() -> None:
    folder = DEMO / "tiny-llama"
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == "LlamaForCausalLM" and model.num_parameters() == 246_336
    assert len(tokenizer) == config.vocab_size
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert special == [config.pad_token_id, config.bos_token_id, config.eos_token_id]
    assert len(set(special)) == 3
