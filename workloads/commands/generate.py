"""Answer every row of a file with a language model; the same command goes on where it stopped.

A row has `prompt`, `question`, `instruction` (and `input`), `text` or `messages`; a text file has a
prompt on each line. Answers come as JSONL in the order of the rows: each row, and its `output`."""

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
    sampling_of,
    speaker_of,
    tell,
    vllm_speaker_of,
)
from workloads.errors import EXIT_DONE, UserError

_COLUMNS = ("messages", "conversations", "prompt", "question", "instruction", "text")
_BATCHES = 4  # answered at a time, the longest prompts of them first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_speaker(parser)
    add_engine(parser)
    parser.add_argument("--input", required=True, metavar="FILE", help="rows; - reads JSONL here")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSONL to write")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="rows at once (16)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    add_sampling(parser, max_new_tokens=256)
    parser.set_defaults(temperature=0.0)


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    no_settings(words)
    env = loaded_environment()
    rows = _rows(args.input)
    talks = [_turns(row, number) for number, row in enumerate(rows, start=1)]
    done = _answered(args.output, rows)
    sampling = sampling_of(args)
    if args.batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more, found {args.batch_size}")
    if done < len(rows):
        by_vllm = engine_of(args) == "vllm"
        speaker = vllm_speaker_of(args, env) if by_vllm else speaker_of(args, env)[0]
        progress, step = Ticker("answers"), args.batch_size * _BATCHES
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("ab") as file:
            for start in range(done, len(rows), step):
                part = talks[start : start + step]
                answers = speaker.answers(part, sampling, args.batch_size, tell)
                for row, answer in zip(rows[start : start + step], answers, strict=True):
                    line = json.dumps({**row, "output": answer}, ensure_ascii=False)
                    file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
                progress(min(start + step, len(rows)), len(rows))
    if args.json:
        print_json({"output": str(args.output), "rows": len(rows), "kept": done})
    else:
        print(f"{args.output}: {len(rows):,} answers" + (f", {done:,} from before" * (done > 0)))
    return EXIT_DONE


def _rows(source: str) -> list[dict[str, Any]]:
    from workloads.data.rows import read_rows

    if source != "-":
        return read_rows(Path(source).expanduser(), {}, budget=0).rows
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(sys.stdin.buffer.read())
        file.flush()
        return read_rows(Path(file.name), {}, budget=0).rows


def _turns(row: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The conversation that a row asks; an answer at its end is what is asked for."""
    name = next((column for column in _COLUMNS if row.get(column)), None)
    if name is None:
        raise UserError(
            f"row {number}: expected one of {', '.join(_COLUMNS)}, found {', '.join(row)}"
        )
    value = row[name]
    if isinstance(value, str):
        more = row.get("input") if name == "instruction" else None
        return [{"role": "user", "content": f"{value}\n{more}" if more else value}]
    from workloads.llm.data.turns import RowError, messages_of

    try:
        turns = [message.turn for message in messages_of(value)]
    except RowError as error:
        raise UserError(f"row {number}: {error}") from None
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns:
        raise UserError(f"row {number}: expected a turn to answer, found an assistant's alone")
    return turns


def _answered(output: Path, rows: list[dict[str, Any]]) -> int:
    """How many rows have been answered before; a line cut short by a kill is taken away."""
    if not output.is_file():
        return 0
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        wanted = rows[number] if number < len(rows) else None
        if not isinstance(found, dict) or {**found, "output": None} != {
            **(wanted or {}),
            "output": None,
        }:
            raise UserError(
                f"{output}:{number + 1}: expected the answer to row {number + 1} of the input, "
                "found another row; choose another --output, or remove the file"
            )
    if len(whole) < len(content):
        os.truncate(output, len(whole))
    return len(lines)
