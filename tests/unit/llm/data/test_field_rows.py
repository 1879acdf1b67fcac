"""Rows as people have them, each case with what of a row is learnt, marked by [[ and ]]."""

import csv
import gzip
import io
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.support.chat_models import write_chat_model
from tests.support.tiny_llama import make_config
from workloads.engine.pretrained.base import find_base
from workloads.engine.pretrained.files import positions
from workloads.errors import UserError
from workloads.llm.check import shallow
from workloads.llm.config import LlmConfig
from workloads.llm.data.prepare import prepare
from workloads.llm.model import load_tokenizer

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[4]
TINY = ROOT / "data" / "demo" / "tiny-llama"
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "rain", "arguments": '{"town": "Nara"}'},
}
TOOL = {
    "type": "function",
    "function": {"name": "rain", "description": "Rain today", "parameters": {}},
}


class Field:
    """A folder for rows and models, and what becomes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        return path

    def learnt(
        self, source: Any, family: str | None = None, model: Any = None, **data: Any
    ) -> tuple[list[str], str]:
        """Rows with marks, and everything that is told; a refusal is told and gives no rows."""
        name = TINY if family is None else self.folder / family
        if family is not None and not name.is_dir():
            write_chat_model(name, family)
        source = str(source) if isinstance(source, Path) else source
        config = LlmConfig.model_validate(
            {
                "workload": "llm",
                "name": "field",
                "model": {"name": str(name), "random_init": True, **(model or {})},
                "data": {"source": source, "max_length": 2048, **data},
            }
        )
        told = [str(found) for found in shallow(config, {}) if found.level != "ok"]
        try:
            base = find_base(config.model, told.append, weights=False)
            tokenizer = load_tokenizer(base, told.append)
            limit = positions(base.config.to_dict())
            ready = prepare(config, tokenizer, self.folder / "cache", positions=limit)
        except UserError as error:
            return [], "\n".join([*told, str(error)])
        told += [*ready.report.lines(), *ready.report.train.bad_rows]
        return [marked(tokenizer, row) for row in ready.train], "\n".join(told)


def marked(tokenizer: Any, row: dict[str, Any]) -> str:
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if not runs or runs[-1][0] != (label != -100):
            runs.append((label != -100, []))
        runs[-1][1].append(token)
    texts = [(learnt, tokenizer.decode(ids)) for learnt, ids in runs]
    return "".join(f"[[{text}]]" if learnt else text for learnt, text in texts)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    return Field(tmp_path)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def talk(*turns: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """Twelve rows that differ where a turn has #."""
    text = json.dumps(turns)
    return [{"messages": json.loads(text.replace("#", str(i))), **more} for i in range(12)]


CALLED = talk(
    user("rain #?"),
    bot(None, tool_calls=[CALL]),
    {"role": "tool", "tool_call_id": "c1", "content": "dry"},
    bot("Dry #."),
    tools=[TOOL],
)


@pytest.mark.parametrize("family", ["chatml", "three", "plain"])
def test_a_call_that_the_template_leaves_out_makes_a_bad_row(field: Field, family: str) -> None:
    """L-F2"""
    rows, told = field.learnt(field.write(CALLED), family)
    assert not rows and re.search(r"leaves out .*turn 2 \(assistant\)", told)


def test_a_call_as_completion_is_no_empty_answer(field: Field) -> None:
    """L-F2"""
    pairs = [{"prompt": [user("rain?")], "completion": [bot("", tool_calls=[CALL])]}] * 12
    rows, told = field.learnt(field.write(pairs), "chatml")
    assert not rows and "'tool_calls' of turn 2" in told


@pytest.mark.parametrize("said", [None, "Let me see."])
def test_a_call_that_ends_with_plain_text_is_learnt(field: Field, said: str | None) -> None:
    """L-F2: a template whose end of a turn is no special token of the tokenizer."""
    template = field.folder / "calls.jinja"
    template.write_text(
        "{% for turn in messages %}[{{ turn.role }}]{{ turn.content or '' }}"
        "{% for call in turn.tool_calls or [] %}<call>{{ call.function | tojson }}</call>"
        "{% endfor %}[end]\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    turns = json.loads(json.dumps([row["messages"] for row in CALLED]))
    for row in turns:
        row[1]["content"] = said
    rows, _ = field.learnt(
        field.write([{"messages": row} for row in turns]), model={"chat_template": str(template)}
    )
    assert len(rows) == 12
    call = f'{said or ""}<call>{{"name": "rain", "arguments": {{"town": "Nara"}}}}</call>[end]'
    assert f"[assistant][[{call}]]" in rows[0]


@pytest.mark.parametrize("family", ["three", "ja"])
def test_roles_of_calls_and_results_do_not_vanish(field: Field, family: str) -> None:
    """L-F2"""
    steps = talk(
        {"from": "human", "value": "rain #?"},
        {"from": "function_call", "value": '{"name": "rain"}'},
        {"from": "observation", "value": "dry"},
        {"from": "gpt", "value": "Dry #."},
    )
    rows, told = field.learnt(field.write(steps), family)
    assert not rows and "leaves out" in told


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": "hi", "context": "It rains."},
        {"role": "user", "content": "hi", "parts": [{"note": "secret"}]},
        {"role": "assistant", "content": "x", "reasoning_content": "because"},
        {"role": "critic", "content": "a"},
        {"role": "tool", "content": "s"},  # a letter that stands in every marker
    ],
)
def test_every_text_under_any_key_and_role_stands_in_the_row(
    field: Field, turn: dict[str, Any]
) -> None:
    """L-F2: further instances of the kind."""
    rows, told = field.learnt(field.write(talk(user("a #?"), turn, user("b"), bot("c"))), "three")
    number = 2
    assert not rows and f"turn {number}" in told, told


def test_what_is_knowingly_left_out_is_no_reason(field: Field) -> None:
    rows, told = field.learnt(
        field.write(talk(user("a #?"), bot("b", note="ten"), title="x")), "three", ignore=["note"]
    )
    assert len(rows) == 12 and "columns not used: title" in told
    rows, told = field.learnt(
        field.write(talk(user("a #?"), bot("b", note="ten"), title="x")),
        "three",
        ignore=["note", "title"],
    )
    assert "not used" not in told


def test_tools_and_their_arguments_are_written_once(field: Field) -> None:
    """L-F3"""
    rows, told = field.learnt(field.write(CALLED), "tools")
    assert "Rain today" in rows[0] and '"arguments": {"town": "Nara"}' in rows[0]
    assert '[[<tool_call>\n{"name": "rain"' in rows[0] and "not used" not in told
    as_text = [{**row, "tools": json.dumps(row["tools"])} for row in CALLED]
    assert field.learnt(field.write(as_text), "tools")[0] == rows


def test_tools_that_no_template_writes_are_told(field: Field) -> None:
    """L-F3"""
    rows, told = field.learnt(field.write(talk(user("a#"), bot("b"), tools=[TOOL])), "chatml")
    assert len(rows) == 12 and "tools that the chat template does not write" in told


def test_a_system_beside_the_turns_becomes_one(field: Field) -> None:
    """L-F3"""
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    shared = [{"system": "Be short.", "conversations": turns, "id": i} for i in range(12)]
    for data in ({}, {"format": "messages", "columns": {"messages": "conversations"}}):
        rows, told = field.learnt(field.write(shared), "chatml", **data)
        assert "system\nBe short." in rows[0] and "columns not used: id" in told


ALPACA = [
    {"instruction": "Say it in English.", "input": f"いぬ{i}", "output": f"dog {i}"}
    for i in range(12)
]


def test_the_second_column_of_a_question_is_used_or_named(field: Field) -> None:
    """L-F5"""
    path = field.write(ALPACA)
    rows, told = field.learnt(path, columns={"question": "instruction", "answer": "output"})
    assert "columns not used: input" in told
    rows, told = field.learnt(path)
    assert "Say it in English.\nいぬ0" in rows[0] and "[[dog 0" in rows[0]
    rows, _ = field.learnt(path, prompt="訳: {input} ({{{instruction}}})", answer="{output}!")
    assert "訳: いぬ0 ({Say it in English.})" in rows[0] and "[[dog 0!" in rows[0]
    history = [{**row, "history": [["Q", "A"]], "system": "S."} for row in ALPACA]
    rows, _ = field.learnt(field.write(history), "three")
    assert rows[0].index("S.") < rows[0].index("Q") < rows[0].index("[[A") < rows[0].index("いぬ")


def test_a_column_that_begins_empty_is_named_when_it_holds_something(field: Field) -> None:
    """L-F5: further instance of the kind."""
    rows = [
        {"question": f"How many {i}?", "answer": "One.", "hint": "count" if i > 5 else ""}
        for i in range(12)
    ]
    _, told = field.learnt(field.write(rows))
    assert "columns not used: hint" in told
    _, told = field.learnt(field.write([{**row, "hint": ""} for row in rows], "empty.jsonl"))
    assert "columns not used" not in told


def test_texts_around_questions_and_answers(field: Field) -> None:
    """L-F5"""
    qa = [{"question": f"都{i}は?", "answer": "奈良"} for i in range(12)]
    texts = {"prompt_prefix": "質問: ", "answer_prefix": "回答: "}
    for family in (None, "plain", "chatml"):
        rows, _ = field.learnt(field.write(qa), family, **texts)
        assert "質問: 都0は?" in rows[0] and "回答: [[奈良" in rows[0]


def test_all_files_of_a_folder_are_read_or_named(field: Field) -> None:
    """L-F6"""
    rows = [{"question": f"{i} + 1 = ?", "answer": f"It is {i + 1}."} for i in range(20)]
    place = field.write(rows[:10], "mixed/a.jsonl").parent
    packed = "".join(json.dumps(row) + "\n" for row in rows[10:]).encode()
    (place / "b.jsonl.gz").write_bytes(gzip.compress(packed))
    (place / "c.json").write_text(json.dumps(rows[:5]))
    (place / "d.txt").write_text("one text\nanother text\n")
    (place / "e.xlsx").write_text("no rows")
    found, told = field.learnt(place)
    assert len(found) == 27 and "e.xlsx" in told and "25 qa, 2 text" in told
    assert "rows of a.jsonl 10, b.jsonl.gz 10, c.json 5, d.txt 2" in told
    both = [str(place / "a.jsonl"), {"source": str(place / "c.json"), "weight": 2.4}]
    assert len(field.learnt(both)[0]) == 10 + 12
    assert len(field.learnt(str(place / "[ac].json*"))[0]) == 15


@pytest.mark.parametrize(
    "turns", [[{"role": "user", "text": "hi #"}, bot("yo #")], [user(None), bot("yo #")]]
)
def test_a_question_that_says_nothing_is_a_bad_row(field: Field, turns: list[Any]) -> None:
    """L-F7"""
    rows, told = field.learnt(field.write(talk(*turns)), format="messages")
    assert not rows and "turn 1 says nothing; found role" in told


def test_an_empty_question_is_a_bad_row(field: Field) -> None:
    """L-F7"""
    empty = [{"question": "", "answer": f"yo {i}"} for i in range(12)]
    rows, told = field.learnt(field.write(empty))
    assert not rows and "the question says nothing" in told


@pytest.mark.parametrize("mark", ["weight", "train", "trainable", "loss_mask"])
def test_turns_marked_as_not_to_be_learnt_are_given(field: Field, mark: str) -> None:
    """L-F8"""
    turns = [user("a"), bot("bad #", **{mark: 0}), user("b"), bot("good #")]
    rows, _ = field.learnt(field.write(talk(*turns)))
    assert "bad 0" in rows[0] and "[[bad" not in rows[0] and "[[good 0" in rows[0]
    turns[1][mark] = 0.5
    rows, told = field.learnt(field.write(talk(*turns)))
    assert not rows and f"expected {mark} 0 or 1" in told
    rows, told = field.learnt(field.write(talk(user("a"), bot("b", **{mark: False}))))
    assert not rows and "every answer is marked" in told


def test_names_of_roles(field: Field) -> None:
    """L-F9"""
    named = talk({"from": "Human", "value": "hi #"}, {"from": "chatgpt", "value": "yo #"})
    assert "[[yo 0" in field.learnt(field.write(named))[0][0]
    other = talk({"from": "human", "value": "hi #"}, {"from": "narrator", "value": "yo #"})
    assert "found roles user, narrator" in field.learnt(field.write(other))[1]


def test_rows_longer_than_the_models_positions_are_refused(field: Field) -> None:
    """L-F10"""
    long = [{"question": f"{i} " + "ab " * 30, "answer": "so " * 20} for i in range(12)]
    path = field.write(long)
    rows, told = field.learnt(path, "short")
    assert not rows and "no more positions" in told and f"{path}:1" in told
    rows, told = field.learnt(path, "short", too_long="drop", max_bad_rows=20)
    assert "expected rows to learn from" in told
    short = [{"question": "a", "answer": "b"}] * 3
    assert "the model has 32 positions" in field.learnt(field.write(short), "short")[1]


@pytest.fixture
def clock() -> Iterator[Any]:
    before = os.environ.get("TZ")

    def move(zone: str) -> None:
        os.environ["TZ"] = zone
        time.tzset()

    yield move
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


def test_tokens_are_the_same_on_every_date(field: Field, clock: Any) -> None:
    """L-F13"""
    found = []
    for zone in ("Etc/GMT+12", "Etc/GMT-14"):
        clock(zone)
        turns = talk(user(f"hi # {len(found)}"), bot("yo #"))
        rows, _ = field.learnt(field.write(turns, f"{zone[-2:]}.jsonl"), "dated")
        found.append(rows[0].replace(f"hi 0 {len(found)}", "hi"))
    assert found[0] == found[1] and "26 Jul 2024" in found[0]


def spm_model(folder: Path) -> Path:
    """A SentencePiece file without byte fallback, and the config of a model beside it."""
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text("\n".join(["空は青い。", "猫が三匹いる。", "海は広いですか？"] * 30))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=60,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=False,
        minloglevel=2,
    )
    own = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "bos_token": "<s>"}
    own |= {"eos_token": "</s>", "add_bos_token": True, "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    make_config(vocab_size=512).save_pretrained(folder)
    return folder


def test_text_that_does_not_come_back_is_counted_and_named(field: Field) -> None:
    """L-F12"""
    spm_model(field.folder / "spm")
    odd = [{"question": f"犬が7匹?\n何匹{i}", "answer": "鳥が匹"} for i in range(12)]
    rows, told = field.learnt(field.write(odd), "spm")
    assert "12 rows hold text that does not come back" in told and "犬 7" in told
    assert "rows.jsonl:1: without" in told


def test_a_tokenizer_that_reads_its_file_as_another_kind_is_refused(field: Field) -> None:
    """L-F12"""
    folder = spm_model(field.folder / "spm")
    (folder / "tokenizer.model").rename(field.folder / "unigram.model")
    write_chat_model(folder, "plain")
    (field.folder / "unigram.model").rename(folder / "spiece.model")
    rows, told = field.learnt(field.write([{"question": "a", "answer": "b"}]), "spm")
    assert not rows and "tokens of the SentencePiece file spiece.model" in told


@pytest.mark.parametrize("family", ["dated", "three"])
def test_a_greeting_is_given_and_not_learnt(field: Field, family: str) -> None:
    """L-F15"""
    turns = [bot("Welcome!"), user("hi #"), bot("yo #")]
    rows, _ = field.learnt(field.write(talk(*turns)), family)
    assert "Welcome!" in rows[0] and "[[yo 0" in rows[0] and rows[0].count("[[") == 1
    system = [{"role": "system", "content": "Sys"}, *turns]
    rows, _ = field.learnt(field.write(talk(*system)), family)
    assert "Sys" in rows[0] and "[[yo 0" in rows[0] and rows[0].count("[[") == 1
    rows, told = field.learnt(field.write(talk(bot("alone #"))), family)
    assert not rows and "no turn of an assistant to learn from" in told


def test_one_begin_and_one_end_of_a_text(field: Field) -> None:
    """L-S1"""
    rows, _ = field.learnt(field.write([{"text": "hi<|endoftext|>\n"}] * 3), "plain")
    assert rows[0] == "[[hi<|endoftext|>]]"
    rows, _ = field.learnt(field.write([{"text": "\n<|begin|>hi<|end|> "}] * 3))
    assert rows[0] == "[[<|begin|>hi<|end|>]]"


def test_tokens_of_other_models_are_told(field: Field) -> None:
    """L-S2"""
    texts = [{"text": f"<|user|>hi {i}<|endoftext|>"} for i in range(12)]
    rows, told = field.learnt(field.write(texts))
    assert len(rows) == 12 and "12 rows hold what looks like a special token" in told
    assert "<|endoftext|>" in told and "<|user|>" not in told.replace("<|endoftext|>", "")
    assert "looks like" in field.learnt(field.write(talk(user("a</s>#"), bot("b"))))[1]


def test_an_empty_system_prompt_is_none(field: Field) -> None:
    """L-S3"""
    qa = [{"question": f"q {i}", "answer": "a"} for i in range(12)]
    assert "system" not in field.learnt(field.write(qa), "chatml", system_prompt="")[0][0]


def test_a_system_prompt_that_rows_have_themselves_is_told(field: Field) -> None:
    turns = talk({"role": "system", "content": "Own."}, user("hi #"), bot("yo"))
    rows, told = field.learnt(field.write(turns), "chatml", system_prompt="Other.")
    assert "Own." in rows[0] and "data.system_prompt is left out" in told


def test_a_thought_that_the_prompt_opens_is_closed_first(field: Field) -> None:
    """L-S4"""
    rows, told = field.learnt(field.write(talk(user("hi #"), bot("yo #"))), "think")
    assert "<think>\n[[\n</think>\n\nyo 0" in rows[0] and "thought closed first" in told
    thought = talk(user("hi #"), bot("<think>\nhm #\n</think>\n\nyo #"))
    rows, told = field.learnt(field.write(thought), "think")
    assert "<think>\n[[hm 0\n</think>\n\nyo 0" in rows[0] and "closed first" not in told


def test_a_spreadsheet_in_another_encoding(field: Field) -> None:
    """L-S5"""
    table = io.StringIO()
    csv.writer(table).writerows([["質問", "回答"], *[[f"都{i}は?", "奈良"] for i in range(12)]])
    path = field.folder / "excel.csv"
    path.write_bytes(table.getvalue().encode("cp932"))
    columns = {"question": "質問", "answer": "回答"}
    assert "data.encoding=cp932" in field.learnt(path, columns=columns)[1]
    assert "[[奈良" in field.learnt(path, columns=columns, encoding="cp932")[0][0]


def test_numbers_as_answers(field: Field) -> None:
    """L-S7"""
    numbers = [{"question": f"{i}+1", "answer": i + 1} for i in range(12)]
    rows, told = field.learnt(field.write(numbers))
    assert "[[1<" in rows[0] and "read as they are written: 12" in told
    rows, told = field.learnt(field.write([{"question": "true?", "answer": True}] * 12))
    assert not rows and "answer" in told


def test_conversations_as_json_text(field: Field) -> None:
    """L-S8"""
    texts = [{"messages": json.dumps([user("hi"), bot(f"yo {i}")])} for i in range(12)]
    assert "[[yo 0" in field.learnt(field.write(texts))[0][0]
    rows, told = field.learnt(field.write([{"messages": "hi"}] * 12))
    assert not rows and "text that is no JSON" in told


def test_a_list_and_a_text(field: Field) -> None:
    """L-S9"""
    one = [{"prompt": [user("hi")], "completion": f"yo {i}"} for i in range(12)]
    other = [{"prompt": "hi", "completion": [bot(f"yo {i}")]} for i in range(12)]
    assert field.learnt(field.write(one))[0] == field.learnt(field.write(other))[0]


@pytest.mark.parametrize("family", ["turns", "think"])
def test_a_system_turn_that_the_template_takes_not_is_merged(field: Field, family: str) -> None:
    """L-S10"""
    turns = talk({"role": "system", "content": "Be short."}, user("hi #"), bot("yo #"))
    rows, told = field.learnt(field.write(turns), family)
    assert "Be short.\n\nhi 0" in rows[0] and "merged into the first question" in told
    rows, told = field.learnt(field.write(turns), family, system_turn="keep")
    assert not rows
    assert (
        "Be short.\n\nhi 0" in field.learnt(field.write(turns), "three", system_turn="merge")[0][0]
    )


def test_a_setting_chooses_among_templates_with_names(field: Field) -> None:
    """L-S11"""
    turns = field.write(talk(user("hi #"), bot("yo #")))
    assert "set model.chat_template" in field.learnt(turns, "named")[1]
    assert "[[yo 0" in field.learnt(turns, "named", model={"chat_template": "rag"})[0][0]
    assert "expected a Jinja file" in field.learnt(turns, "named", model={"chat_template": "x"})[1]


def test_three_kinds_of_rows_in_one_file(field: Field) -> None:
    kinds = [*ALPACA, *talk(user("hi #"), bot("yo #")), {"question": "q", "answer": "a"}]
    kinds += [{"prompt": "p", "completion": "c"}, {"text": "whole"}]
    rows, told = field.learnt(field.write(kinds))
    assert "12 alpaca, 12 messages, 1 qa, 1 prompt_completion, 1 text" in told
    assert [row.count("[[") for row in rows] == [1] * 27
    rows, told = field.learnt(field.write([*kinds, {"title": "x"}]))
    assert "rows.jsonl:28: expected the columns of one format" in told


def test_turns_behind_the_last_answer_are_told(field: Field) -> None:
    rows, told = field.learnt(field.write(talk(user("a#"), bot("b"), user("thanks"))))
    assert "12 rows end with turns behind the last answer" in told and "thanks" not in rows[0]


FORMS = {
    "stablelm-instruct-ja": (
        "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
        "\n\n### 指示: \nq\nr\n\n### 入力: \nx\n\n### 応答: \n[[a\nb</s>]]"
    ),
    "rinna-instruct": "ユーザー: q<NL>r<NL>x<NL>システム: [[a<NL>b</s>]]",
    "line-instruct": "ユーザー: q\nr\nx\nシステム: [[a\nb</s>]]",
    "llm-jp-instruct": (
        "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
        "\n\n### 指示:\nq\nr\n\n### 入力:\nx\n\n### 応答:\n[[a\nb</s>]]"
    ),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nq\nr\n\n### Input:\nx\n\n### Response:\n"
        "[[a\nb</s>]]"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_named_prompt_formats(field: Field, form: str) -> None:
    row = {"instruction": "q\nr", "input": "x", "output": "a\nb"}
    rows, _ = field.learnt(field.write([row] * 3), "three", model={"chat_template": form})
    assert rows[0] == FORMS[form]
    turns = talk(user("u1"), bot("a1"), user("u2"), bot("a2"))
    rows, told = field.learnt(field.write(turns), "three", model={"chat_template": form})
    assert "[[a1" in rows[0] and "[[a2</s>]]" in rows[0] and "read differently" not in told


def test_switches_of_a_template_go_with_the_tokenizer(field: Field) -> None:
    file = field.folder / "own.jinja"
    file.write_text("{% for m in messages %}{{ m.role + (mark or '-') + m.content }}{% endfor %}")
    model = {"chat_template": str(file), "chat_template_kwargs": {"mark": "=="}}
    rows, _ = field.learnt(field.write(talk(user("a#"), bot("b"))), "three", model=model)
    assert rows[0] == "user==a0[[assistant==b</s>]]"
    model["chat_template_kwargs"] = {"marc": "=="}
    assert (
        "'marc'" in field.learnt(field.write(talk(user("a#"), bot("b"))), "three", model=model)[1]
    )
