"""Prepared datasets: lengths, bad rows, held-out rows, packing, and the cache over many ranks."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workloads.data.build_once import built_once, is_whole
from workloads.errors import UserError
from workloads.llm.config import LlmConfig, LlmData
from workloads.llm.data.prepare import Prepared, load_rows, prepare
from workloads.llm.data.report import Report
from workloads.llm.data.rows import held_out

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[4]
DEMO = ROOT / "data" / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DEMO / "tiny-llama")


def config(source: Path, **data: Any) -> LlmConfig:
    return LlmConfig.model_validate(
        {
            "workload": "llm",
            "name": "test",
            "model": {"name": "data/demo/tiny-llama"},
            "data": {"source": str(source), **data},
        }
    )


def write(path: Path, rows: list[dict]) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
    return path


def rows_of(count: int, words: int = 3) -> list[dict]:
    return [{"question": f"Q{i}?", "answer": f"A{i}" + " 7" * words} for i in range(count)]


def refusal(wanted: LlmConfig, tokenizer: PreTrainedTokenizerBase, cache: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(wanted, tokenizer, cache)
    return str(caught.value)


def texts(data: Prepared, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Row number → its text, put together from the sequences."""
    found = {}
    for row in data.train:
        assert len(row["input_ids"]) == len(row["labels"]) == sum(row["seq_lengths"])
        start = 0
        for length, number in zip(row["seq_lengths"], row["row_ids"], strict=True):
            found[number] = tokenizer.decode(row["input_ids"][start : start + length])
            start += length
    return found


def test_columns_and_row_numbers(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = tmp_path / "rows.jsonl"
    write(source, [{"q": "Q?", "answer": "A"}, {"q": "R?", "answer": "B"}])
    data = prepare(config(source, columns={"question": "q"}), tokenizer, tmp_path)
    assert data.train.column_names == ["input_ids", "labels", "seq_lengths", "row_ids"]
    assert data.evaluation is None
    assert texts(data, tokenizer)[1] == "<|begin|><|user|>R?<|end|><|assistant|>B<|end|>"
    assert data.places([1, 0]) == [f"{source}:2", f"{source}:1"]


def test_packed_sequences_hold_every_row_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = config(DEMO / "gsm8k.jsonl", eval_rows=50)
    packed = config(DEMO / "gsm8k.jsonl", eval_rows=50, packing=True, max_length=512)
    one, many = prepare(plain, tokenizer, tmp_path), prepare(packed, tokenizer, tmp_path)
    assert texts(one, tokenizer) == texts(many, tokenizer)
    assert len(many.train) < len(one.train) == 300
    assert max(len(row["input_ids"]) for row in many.train) <= 512
    report = many.report.train
    assert report.sequences == len(many.train) and report.rows == 300
    assert report.tokens == sum(len(row["input_ids"]) for row in many.train)
    assert report.packing_efficiency == pytest.approx(report.tokens / (512 * report.sequences))
    assert report.sequences == -(-report.tokens // 512)  # not one more than needed
    labels = [label for row in many.train for label in row["labels"]]
    assert report.learnt_tokens == len(labels) - labels.count(-100)


def test_held_out_rows_are_spread_and_never_trained_on(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", rows_of(100))
    data = LlmData(source=str(source), eval_rows=10)
    train, held = load_rows(data, "train"), load_rows(data, "eval")
    assert len(train) == 90 and len(held) == 10
    assert not set(train.numbers) & set(held.numbers)
    assert [number // 10 for number in held.numbers] == list(range(10))
    assert held.numbers == load_rows(data, "eval").numbers
    assert held[3] == rows_of(100)[held.numbers[3]]
    assert held.place(held.numbers[0]) == f"{source}:{held.numbers[0] + 1}"


def test_training_rows_equal_to_a_held_out_one_are_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of(40)
    twin = held_out(40, 4)[2]
    other = (twin + 10) % 40
    assert other not in held_out(40, 4)
    rows[other] = rows[twin]
    wanted = config(write(tmp_path / "rows.jsonl", rows), eval_rows=4)
    train = load_rows(wanted.data, "train")
    assert other not in train.numbers and len(train) == 35
    report = prepare(wanted, tokenizer, tmp_path).report
    assert report.train.twins == 1 and "  1 left out that equal a held-out row" in report.lines()


def test_held_out_rows_of_their_own(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(source, rows_of(5))
    write(other, rows_of(3))
    data = prepare(config(source, eval_source=str(other)), tokenizer, tmp_path)
    assert data.evaluation is not None and len(data.evaluation) == 3
    assert data.places([2], "eval") == [f"{other}:3"]
    text = refusal(config(source, eval_split="test"), tokenizer, tmp_path)
    assert "data.eval_source" in text and "data.eval_rows" in text
    text = refusal(config(source, eval_rows=5), tokenizer, tmp_path)
    assert "found 5 rows and eval_rows 5" in text


def test_bad_rows_are_skipped_and_named(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of(6)
    rows[2]["answer"] = "  "
    source = write(tmp_path / "rows.jsonl", rows)
    with source.open("a") as file:
        file.write('{"question": "cut off\n')
    data = prepare(config(source), tokenizer, tmp_path)
    assert sorted(texts(data, tokenizer)) == [0, 1, 3, 4, 5]
    bad = data.report.train.bad_rows
    assert bad[1] == f"{source}:3: the answer is empty"
    assert bad[0].startswith(f"{source}:7: invalid JSON")
    assert any("2 bad rows skipped" in line for line in data.report.lines())
    held = prepare(config(source, eval_rows=2), tokenizer, tmp_path).report
    assert held.evaluation is not None and bad[0] in held.train.bad_rows
    assert bad[0] not in held.evaluation.bad_rows  # read once, so told once
    text = refusal(config(source, max_bad_rows=1), tokenizer, tmp_path)
    assert "at most 1 bad rows" in text and f"{source}:3: the answer is empty" in text


def test_long_rows_stop_are_cut_or_are_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of(9)
    for number in (3, 5):
        rows[number]["answer"] = "word " * 40
    source = write(tmp_path / "rows.jsonl", rows)
    text = refusal(config(source, max_length=30), tokenizer, tmp_path)
    longest = prepare(config(source), tokenizer, tmp_path).report.train.longest
    assert f"{source}:4: {longest} tokens" in text and f"{source}:6: {longest} tokens" in text
    assert "at most 30 tokens, found 2 longer" in text and f"max_length to {longest}" in text
    cut = prepare(config(source, max_length=30, too_long="truncate"), tokenizer, tmp_path)
    assert len(cut.train) == 9 and max(len(row["input_ids"]) for row in cut.train) == 30
    assert "  2 rows over 30 tokens, cut to it" in cut.report.lines()
    left = prepare(config(source, max_length=30, too_long="drop"), tokenizer, tmp_path)
    assert sorted(texts(left, tokenizer)) == [0, 1, 2, 4, 6, 7, 8]
    assert left.report.train.too_long == 2
    all_over = config(source, max_length=8, too_long="drop")
    assert "expected rows to learn from" in refusal(all_over, tokenizer, tmp_path)
    source = write(tmp_path / "same.jsonl", [rows_of(1)[0]] * 6)
    same = refusal(config(source, eval_rows=2), tokenizer, tmp_path)
    assert "all 4 that are not held out equal one that is" in same


def test_a_row_whose_answer_is_cut_away_is_bad(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of(4)
    rows[1]["question"] = "word " * 60
    source = write(tmp_path / "rows.jsonl", rows)
    wanted = config(source, max_length=24, too_long="truncate", max_bad_rows=1)
    data = prepare(wanted, tokenizer, tmp_path)
    assert sorted(texts(data, tokenizer)) == [0, 2, 3]
    assert data.report.train.bad_rows == [
        f"{source}:2: cutting it to 24 tokens leaves nothing of the answer; raise max_length"
    ]


def test_the_report_survives_json(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    wanted = config(DEMO / "gsm8k.jsonl", eval_rows=20, packing=True)
    report = prepare(wanted, tokenizer, tmp_path).report
    assert Report.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    assert report.lines()[0].startswith("training rows: 330, ")


def test_the_cache_knows_rows_settings_and_tokenizer(tmp_path: Path) -> None:
    own = AutoTokenizer.from_pretrained(DEMO / "tiny-llama")
    source = write(tmp_path / "rows.jsonl", rows_of(5))
    first = prepare(config(source), own, tmp_path)
    stamp = (first.folder / "train.arrow").stat().st_mtime_ns
    again = prepare(config(source), AutoTokenizer.from_pretrained(DEMO / "tiny-llama"), tmp_path)
    assert again.folder == first.folder
    assert (again.folder / "train.arrow").stat().st_mtime_ns == stamp
    assert again.train.to_list() == first.train.to_list() and again.report == first.report
    assert prepare(config(source, prompt_suffix="!"), own, tmp_path).folder != first.folder
    write(source, [*rows_of(4), {"question": "Q4?", "answer": "other"}])
    assert prepare(config(source), own, tmp_path).folder != first.folder
    own.chat_template = own.chat_template.replace("<|assistant|>", "<|user|>")
    write(source, rows_of(5))
    assert prepare(config(source), own, tmp_path).folder != first.folder


def test_a_digest_tells_other_rows_apart(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """What a checkpoint keeps, so that a run is not resumed on rows that were edited since."""
    source = write(tmp_path / "rows.jsonl", rows_of(20))

    def made(cache: str, **data: Any) -> str:
        prepared = prepare(config(source, max_length=64, **data), tokenizer, tmp_path / cache)
        return prepared.report.train.digest

    first = made("a")
    assert first and made("b") == first
    assert made("a", packing=True) != first
    rows = rows_of(20)
    rows[7]["answer"] += "!"
    write(source, rows)
    assert made("a") != first


def test_a_damaged_cache_is_built_anew(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    source = write(tmp_path / "rows.jsonl", rows_of(5))
    first = prepare(config(source), tokenizer, tmp_path)
    rows = first.train.to_list()
    file = first.folder / "train.arrow"
    os.truncate(file, file.stat().st_size // 2)
    assert prepare(config(source), tokenizer, tmp_path).train.to_list() == rows


def test_nothing_is_left_of_a_refused_build(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    source = write(tmp_path / "rows.jsonl", rows_of(5, words=60))
    refusal(config(source, max_length=16), tokenizer, tmp_path / "cache")
    left = [file for file in (tmp_path / "cache").rglob("*") if file.suffix != ".lock"]
    assert left == [tmp_path / "cache" / "llm"]


def _rank(folder: Path, log: Path, start: Any) -> None:
    def build(part: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        (part / "data").write_text("whole")

    start.wait()
    built_once(folder, build)
    assert (folder / "data").read_text() == "whole"


def test_of_many_ranks_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    folder, log, start = tmp_path / "cache" / "key", tmp_path / "log", context.Barrier(6)
    ranks = [context.Process(target=_rank, args=(folder, log, start)) for _ in range(6)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 6
    assert len(log.read_text().splitlines()) == 1


def _stuck(folder: Path, begun: Any) -> None:
    def build(part: Path) -> None:
        (part / "data").write_text("half")
        begun.set()
        signal.pause()

    built_once(folder, build)


def test_the_next_one_builds_where_a_builder_was_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    folder, begun = tmp_path / "key", context.Event()
    stuck = context.Process(target=_stuck, args=(folder, begun))
    stuck.start()
    assert begun.wait(30)
    waited = []

    def progress() -> None:
        waited.append(1)
        if stuck.is_alive():
            os.kill(stuck.pid or 0, signal.SIGKILL)

    assert built_once(folder, lambda part: (part / "data").write_text("whole"), progress)
    stuck.join()
    assert waited and is_whole(folder) and (folder / "data").read_text() == "whole"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["key", "key.lock"]
