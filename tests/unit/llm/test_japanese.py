"""The Japanese rows: those committed, in their forms, none in two sets, held by their tokenizer."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from workloads.llm.japanese import CAPITALS, PEOPLE, dialogues, questions, summaries, write

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "data" / "demo"
FILES = ("ja-dialogue.jsonl", "ja-questions.jsonl", "ja-summaries.jsonl")


def test_the_rows_are_the_committed_ones(tmp_path: Path) -> None:
    write(tmp_path)
    for name in FILES:
        same = (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()
        assert same, f"{name}: run python -m workloads.llm.japanese"


def test_no_row_stands_twice_or_in_another_set() -> None:
    said = [json.dumps(row, ensure_ascii=False) for row in dialogues()]
    assert len(set(said)) == len(said) == 1600
    assert len({row["question"] for row in questions()}) == len(questions())
    documents = {row["document"] for row in summaries()}
    assert len(documents) == len(summaries())
    turns = {turn["content"] for row in dialogues() for turn in row["messages"]}
    assert not documents & turns
    assert not {row["question"] for row in questions()} & turns


def test_every_fact_is_asked_for_in_several_ways() -> None:
    assert len(CAPITALS) == 46, "all prefectures but Tokyo"
    answers = [row["answer"] for row in questions()]
    assert min(answers.count(answer) for answer in answers) >= 4


def test_a_summary_says_what_its_document_does() -> None:
    for row in summaries():
        person, rest = row["summary"].split("は", 1)
        town, told = rest.split("で", 1)
        assert all(text in row["document"] for text in (person, town, told))


def test_a_name_is_one_token_wherever_it_stands() -> None:
    """What is copied from a report into its summary has to look the same in both."""
    tokenizer = Tokenizer.from_file(str(DEMO / "tiny-japanese" / "tokenizer.json"))
    names = [town for town in CAPITALS.values() if town != "さいたま市"]
    names += [person for person in PEOPLE if person != "隣の人"]
    for name in names:
        (own,) = tokenizer.encode(name, add_special_tokens=False).ids
        for text in (f"{name}は", f"要約: {name}から", f"行き先は{name}です。"):
            assert own in tokenizer.encode(text).ids, text


def test_the_tokenizer_holds_japanese() -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tiny-japanese" / "tokenizer.json"))
    for name in FILES:
        for line in (DEMO / name).read_text(encoding="utf-8").splitlines()[:50]:
            text = "".join(json.loads(line).get("question", line))
            assert tokenizer.decode(tokenizer.encode(text).ids) == text
    text = "日本でいちばん高い山は富士山です。"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) <= len(text) * 0.75, "pieces of several characters"
    strange = "髙橋さんの鱧🐟と㍿"
    assert tokenizer.decode(tokenizer.encode(strange).ids) == strange, "every byte has a token"
