"""Answer every row of a file with a language model; the same command resumes where it stopped.

A row has `prompt`, `question`, `instruction` (and `input`), `text` or `messages`; a text file has a
prompt on each line. Answers come as JSONL in the order of the rows: each row, and its `output`; an
output that a row has already is kept as `expected`."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workloads.commands.common import Ticker, loaded_environment, no_settings, print_json
from workloads.commands.speaking import (
    add_engine,
    add_sampling,
    add_speaker,
    engine_of,
    report,
    sampling_of,
    speaker_of,
    vllm_speaker_of,
)
from workloads.errors import EXIT_DONE, UserError

_COLUMNS = ("messages", "conversations", "prompt", "question", "instruction", "text")
_BATCHES = 4  # rows answered at a time, longest prompts first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_speaker(parser)
    add_engine(parser)
    parser.add_argument("--input", required=True, metavar="FILE", help="rows; - reads JSONL here")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSONL; - writes it here")
    parser.add_argument("--encoding", default="utf-8", help="of a text file, such as cp932 (utf-8)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="rows at once (16)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    add_sampling(parser, max_new_tokens=256, temperature=0)


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    no_settings(words)
    env = loaded_environment()
    if args.batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more, found {args.batch_size}")
    sampling, step = sampling_of(args), args.batch_size * _BATCHES
    output = None if args.output == "-" else Path(args.output).expanduser()
    rows, talks, places = _read(args.input, args.encoding)
    if output and output.is_file() and args.input != "-" and output.samefile(args.input):
        raise UserError(f"--output: expected another file than --input, found {output} for both")
    done = _answered(output, rows, step) if output else 0
    if done < len(rows):
        by_vllm = engine_of(args) == "vllm"
        speaker = vllm_speaker_of(args, env) if by_vllm else speaker_of(args, env)[0]
        for talk, place in zip(talks[done:], places[done:], strict=True):
            try:
                speaker.check(talk, args.max_new_tokens)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
        progress = Ticker("answers")
        for start in range(done, len(rows), step):
            answers = speaker.answers(
                talks[start : start + step], sampling, args.batch_size, report
            )
            _append(output, rows[start : start + step], answers)
            progress(min(start + step, len(rows)), len(rows))
    if output is None:
        return EXIT_DONE
    if args.json:
        print_json({"output": str(output), "rows": len(rows), "kept": done})
    else:
        print(f"{output}: {len(rows):,} answers" + (f", {done:,} from before" * (done > 0)))
    return EXIT_DONE


def _read(
    source: str, encoding: str
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]], list[str]]:
    """The rows of a file as they are written again, what each asks, and its file and line."""
    from workloads.data.rows import read_rows

    with tempfile.TemporaryDirectory() as folder:
        path = Path(source).expanduser()
        if source == "-":
            path = Path(folder, "stdin.jsonl")
            path.write_bytes(sys.stdin.buffer.read())
        try:
            found = read_rows(path, {}, budget=0, encoding=encoding)
        except UserError as error:  # the setting of a profile is an option here
            raise UserError(str(error).replace("data.encoding", "--encoding")) from None
    places = [found.place(index) for index in range(len(found.rows))]
    talks = [_turns(row, place) for row, place in zip(found.rows, places, strict=True)]
    if any("output" in row for row in found.rows):
        report("rows have an `output` of their own; it is kept as `expected`")
    kept = [_kept(row, place) for row, place in zip(found.rows, places, strict=True)]
    return kept, talks, places


def _kept(row: dict[str, Any], place: str) -> dict[str, Any]:
    """A row as it stands beside its answer: an output of its own is what was expected."""
    if "output" in row and "expected" in row:
        raise UserError(f"{place}: expected no `expected` beside `output`; rename or remove one")
    return {"expected" if name == "output" else name: value for name, value in row.items()}


def _append(output: Path | None, rows: list[dict[str, Any]], answers: list[str]) -> None:
    """Write rows with their answers behind those that are there, or to standard output."""
    pairs = zip(rows, answers, strict=True)
    lines = [json.dumps({**row, "output": said}, ensure_ascii=False) + "\n" for row, said in pairs]
    text = "".join(lines).encode()
    if output is None:
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
        return
    try:
        with output.open("ab") as file:
            file.write(text)
            file.flush()
            if output.is_file():
                os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"--output: expected {output} to take answers, found {error}; the same command goes "
            "on with what was written"
        ) from None


def _turns(row: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The conversation that a row asks; an answer at its end is what is asked for."""
    name = next((column for column in _COLUMNS if row.get(column)), None)
    if name is None:
        raise UserError(f"{place}: expected one of {', '.join(_COLUMNS)}, found {', '.join(row)}")
    value = row[name]
    if isinstance(value, str):
        more = row.get("input") if name == "instruction" else None
        return [{"role": "user", "content": f"{value}\n{more}" if more else value}]
    from workloads.llm.data.turns import RowError, messages_of

    try:
        turns = [message.turn for message in messages_of(value)]
    except RowError as error:
        raise UserError(f"{place}: {name}: expected a text, or {error}") from None
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns:
        raise UserError(f"{place}: expected a turn to answer, found an assistant's alone")
    return turns


def _answered(output: Path, rows: list[dict[str, Any]], step: int) -> int:
    """How many rows have been answered before, whole parts of `step` rows.

    What a kill left of a part is taken away: rows that are answered together again give the same
    answers again. Raises UserError where the file has anything else.
    """
    if output.is_dir():
        raise UserError(f"--output: expected a file to write, found the folder {output}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: expected a file to write, found {error}") from None
    if not output.is_file():
        return 0
    content = output.read_bytes()
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    for number, line in enumerate(lines):
        try:
            found = dict(json.loads(line))
        except (TypeError, ValueError):
            found = {}
        wanted = rows[number] if number < len(rows) else None
        answered = {**wanted, "output": found.get("output")} if wanted and found else None
        if not answered or "output" not in found or found != answered:
            raise UserError(
                f"{output}:{number + 1}: expected the answer to row {number + 1} of the input, "
                "found another row; choose another --output, or remove the file"
            )
    if len(lines) < len(rows):
        lines = lines[: len(lines) // step * step]
    whole = sum(map(len, lines))
    if whole < len(content):
        os.truncate(output, whole)
    return len(lines)
