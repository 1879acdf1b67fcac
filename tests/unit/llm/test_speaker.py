"""Talk to a model and let it answer files: the prompts of training, its ends, adapters, resume."""

import argparse
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_adapter import write_adapter
from tests.support.tiny_llama import make_model, make_tokenizer, write_tiny
from workloads.cli import main
from workloads.engine.hub.upload import FACTS
from workloads.errors import UserError
from workloads.llm.speaker import BASE, Sampling, Speaker, load

pytestmark = pytest.mark.unit
GREEDY = Sampling(max_new_tokens=12, greedy=True)
ASKED = [{"role": "user", "content": "犬は何匹?"}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path / "outputs"))
    return write_tiny(tmp_path / "tiny")


def speaker_at(folder: Path) -> Speaker:
    return load(str(folder), "fp32", lambda text: None)


def greedy_by_transformers(folder: Path, text: str, new: int) -> str:
    model, tokenizer = make_model(), make_tokenizer()
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=[2])
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def test_answers_are_transformers_own_and_come_in_pieces(folder: Path) -> None:
    speaker = speaker_at(folder)
    prompt = "<|begin|><|user|>犬は何匹?<|end|><|assistant|>"
    assert speaker.prompt(ASKED) == prompt
    expected = greedy_by_transformers(folder, prompt, 12)
    assert "".join(speaker.stream(ASKED, GREEDY)) == expected
    assert speaker.answers([ASKED, ASKED], GREEDY, 2) == [expected] * 2


def test_a_question_is_put_as_training_put_it(folder: Path) -> None:
    own = {"prompt_suffix": " Think.", "system_prompt": "Be short.", "answer_prefix": "A: "}
    (folder / FACTS).write_text(json.dumps({"data": own}))
    assert speaker_at(folder).prompt(ASKED) == (
        "<|begin|><|system|>Be short.<|end|><|user|>犬は何匹? Think.<|end|><|assistant|>A: "
    )


def test_a_template_of_one_column_is_put_around_a_question(folder: Path) -> None:
    (folder / FACTS).write_text(
        json.dumps({"data": {"prompt": "質問: {q}?", "format": "template"}})
    )
    assert "<|user|>質問: 犬は何匹??<|end|>" in speaker_at(folder).prompt(ASKED)


def test_an_answer_ends_when_it_is_told_to(folder: Path) -> None:
    stop = threading.Event()
    pieces = speaker_at(folder).stream(ASKED, Sampling(max_new_tokens=400, greedy=True), stop)
    stop.set()
    assert len("".join(pieces)) < 40


def test_adapters_are_switched_at_use(folder: Path, tmp_path: Path) -> None:
    speaker = speaker_at(folder)
    plain = speaker.answer(ASKED, GREEDY)
    for seed, name in enumerate(("poems", "sums")):
        speaker.add_adapter(name, write_adapter(tmp_path / name, folder, seed))
    found = {}
    for name in ("poems", "sums", BASE):
        speaker.use(name)
        found[name] = speaker.answer(ASKED, GREEDY)
        assert not any(module.training for module in speaker.model.modules())
    assert found[BASE] == plain and len(set(found.values())) == 3
    with pytest.raises(UserError, match="poems, sums, base"):
        speaker.use("other")
    other = write_adapter(tmp_path / "other", tmp_path / "elsewhere", 3)
    with pytest.raises(UserError, match="expected an adapter of"):
        speaker.add_adapter("other", other)


def test_a_prompt_beyond_the_positions_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="512 positions"):
        speaker_at(folder).answer([{"role": "user", "content": "a" * 600}], GREEDY)


def piped(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """Let standard input be a pipe with this."""
    content = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


@pytest.mark.runs("tatara chat RUN")
def test_lines_of_a_pipe_are_one_conversation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "\ufeffhi\r\n/adapter\n/reset\n\n　\nhi\n/save talk.json\n/quit\nhi\n")
    words = ["chat", str(folder), "--temperature", "0", "--max-new-tokens", "6"]
    assert main([*words, "--precision", "fp32"]) == 0
    out, told = capsys.readouterr()
    first, second = out.rstrip("\n").split("\n") if out.count("\n") == 2 else ("?", "!")
    assert first == second and "adapters: none" in told
    saved = json.loads(Path("talk.json").read_text())["messages"]
    assert [turn["content"] for turn in saved] == ["hi", first]


def test_commands_as_an_input_method_writes_them(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poems = write_adapter(tmp_path / "poems", folder, 1)
    lines = (
        "／ａｄａｐｔｅｒ　ｂａｓｅ",
        "/system　短く答えて",
        "／ｓａｖｅ　talk.json",
        "／ｑｕｉｔ",
    )
    piped(monkeypatch, "\n".join(lines))
    assert main(["chat", str(folder), "--adapter", f"poems={poems}"]) == 0
    out, told = capsys.readouterr()
    assert out == "" and "adapters: poems, *base" in told
    saved = json.loads(Path("talk.json").read_text())["messages"]
    assert saved == [{"role": "system", "content": "短く答えて"}]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a\n犬は?\n".encode("cp932"), "standard input, line 2: expected text in utf-8"),
        (b"/save mine.json\n", "found mine.json already"),
        (b"/rest\n", "unknown command /rest"),
    ],
)
def test_lines_that_cannot_be_taken(
    folder: Path,
    content: bytes,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("mine.json").write_text("kept")
    piped(monkeypatch, content)
    assert main(["chat", str(folder), "--max-new-tokens", "2"]) == 2
    assert told in capsys.readouterr().err and Path("mine.json").read_text() == "kept"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--adapter", "x=nowhere"], "NAME=DIR"),
        (["--compare", "base"], "expected a run whose base"),
        (["--max-new-tokens", "0"], "1 or more"),
        (["--temperature", "nan"], "0 or more"),
    ],
)
def test_mistakes_end_with_a_sentence(
    folder: Path,
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    piped(monkeypatch, "hi\n")
    assert main(["chat", str(folder), *words]) == 2
    assert told in capsys.readouterr().err


def test_no_such_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "nothing"]) == 2
    assert "tatara: " in capsys.readouterr().err


def generated(folder: Path, *words: str) -> int:
    own = ["generate", str(folder), "--input", "in.jsonl", "--output", "out.jsonl"]
    return main([*own, "--precision", "fp32", "--max-new-tokens", "6", "--batch-size", "1", *words])


def test_a_generation_that_was_killed_goes_on_and_gives_the_same_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{"question": f"{i}?", "id": i} for i in range(6)]
    rows.append({"messages": [*ASKED, {"role": "assistant", "content": "known"}]})
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert generated(folder) == 0
    whole = Path("out.jsonl").read_bytes()
    lines = [json.loads(line) for line in whole.decode().splitlines()]
    assert [{**line, "output": 0} for line in lines] == [{**row, "output": 0} for row in rows]
    prompt = "<|begin|><|user|>0?<|end|><|assistant|>"
    assert lines[0]["output"] == greedy_by_transformers(folder, prompt, 6)
    cut = whole.index(b"\n", len(whole) // 2) + 7  # in the middle of a line
    Path("out.jsonl").write_bytes(whole[:cut])
    assert generated(folder, "--json") == 0
    assert Path("out.jsonl").read_bytes() == whole
    assert json.loads(capsys.readouterr().out.rpartition("{")[2].join(["{", ""]))["rows"] == 7
    Path("in.jsonl").write_text('{"question": "another"}\n')
    assert generated(folder) == 2
    assert "out.jsonl:1: expected the answer to row 1" in capsys.readouterr().err


def test_rows_without_a_question_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.jsonl").write_text('{"question": "a"}\n{"title": "b"}\n')
    assert generated(folder) == 2
    assert "in.jsonl:2: expected one of messages" in capsys.readouterr().err
    for row, told in (
        ({"prompt": 3}, "in.jsonl:2: prompt: expected a text, or"),
        ({"prompt": "a" * 600}, "in.jsonl:2: expected a prompt of at most 506 tokens"),
        ({"prompt": "a", "output": "b", "expected": "c"}, "in.jsonl:2: expected no `expected`"),
    ):
        Path("in.jsonl").write_text('{"question": "a"}\n' + json.dumps(row))
        assert generated(folder) == 2
        assert told in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_questions_in_another_encoding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a profile sets as data.encoding is an option here."""
    Path("in.csv").write_bytes("question\n犬は何匹ですか\n".encode("cp932"))
    assert generated(folder, "--input", "in.csv") == 2
    assert "it reads as cp932: set --encoding=cp932" in capsys.readouterr().err
    assert generated(folder, "--input", "in.csv", "--encoding", "cp932") == 0
    assert '"question": "犬は何匹ですか"' in Path("out.jsonl").read_text(encoding="utf-8")


def test_an_output_of_the_rows_own_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.jsonl").write_text('{"instruction": "a", "input": "", "output": "own"}\n')
    assert generated(folder) == 0 and generated(folder) == 0, "the second goes on"
    (row,) = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert row["expected"] == "own" and row["output"] != "own"
    assert "kept as `expected`" in capsys.readouterr().err


def test_answers_by_a_pipe(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    piped(monkeypatch, '\ufeff{"prompt": "犬🐕"}\r\n\n{"prompt": "hi"}')
    words = ["generate", str(folder), "--input", "-", "--output", "-", "--max-new-tokens", "2"]
    assert main(words) == 0
    lines = capsysbinary.readouterr().out.decode().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["犬🐕", "hi"]


def test_an_output_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_text('{"question": "a"}\n')
    Path("file").touch()
    for output, told in (
        ("in.jsonl", "expected another file than --input"),
        (".", "the folder"),
        ("file/out.jsonl", "File exists"),
        ("/dev/full", "No"),
    ):
        assert generated(folder, "--output", output) == 2
        assert told in capsys.readouterr().err


def test_a_full_disk_is_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "hi\n")
    before = os.dup(1)
    try:
        with open("/dev/full", "w") as full:
            monkeypatch.setattr("sys.stdout", full)
            assert main(["chat", str(folder), "--max-new-tokens", "2"]) == 1
            monkeypatch.undo()
    except OSError:
        pass  # what is left in the file's buffer has no room either
    finally:
        os.dup2(before, 1)
        os.close(before)
    assert "no room is left there" in capfd.readouterr().err


def test_arguments_are_all_explained() -> None:
    from workloads.commands import chat, generate

    for module in (chat, generate):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        assert all(action.help for action in parser._actions)
