"""How fast do rows of chat become token ids and labels? Beside TRL's own preparation.

    python -m bench.tokenise            # prints the figures
    python -m bench.tokenise --write    # and writes docs/benchmarks/tokenise.md

Two shapes of the same demo texts: single questions with loss on the answer, and conversations of
three questions with loss on every answer. TRL gets each in the form it takes loss on answers from:
prompt and completion, and messages with a template that marks what the assistant says. Its side is
`SFTTrainer._prepare_dataset`, which the trainer calls itself, with the caching of `datasets` off.
Ours goes from the file to the dataset on disk, with nothing in the cache.
"""

import argparse
import gc
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from bench._pair import ROOT, Side, Timed, benchmark_parser, facts, measure, table, write_page
from workloads.llm.config import LlmConfig
from workloads.llm.data.prepare import Prepared, prepare

DEMO = ROOT / "data" / "demo"
MODEL = DEMO / "tiny-llama"
LENGTH = 1024
SOURCES = ["columns", "conversation", "guard", "prepare", "rows", "template", "tokenise", "turns"]
Row = dict[str, Any]


def main() -> None:
    parser = benchmark_parser("tokenise", __doc__)
    parser.add_argument("--rows", type=int, default=12_000)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    gc.freeze()  # as a rank does after its imports
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        tables = [
            _compare("Single questions", _questions(arguments.rows), arguments, tokenizer, folder),
            _compare("Conversations", _talks(arguments.rows), arguments, tokenizer, folder),
        ]
    code = [f"workloads/llm/data/{name}.py" for name in SOURCES]
    known = facts(
        ["tokenizers", "transformers", "datasets", "trl"],
        [*code, "bench/tokenise.py", "bench/_pair.py"],
        arguments.machine,
    )
    print(f"\n{known}")
    if arguments.write:
        print(f"wrote {write_page('tokenise', [*_introduction(arguments.rows), *tables, known])}")


def _introduction(rows: int) -> list[str]:
    return [
        "# Rows of chat to tokens and labels",
        f"{rows:,} rows made from the demo's questions, with the demo's tokenizer and chat "
        "template: `prepare` beside `SFTTrainer._prepare_dataset` of TRL, in "
        "one process, turn by turn, after checking that every row has the same token ids and "
        "the same labels on both sides. MB are those of the rows as UTF-8 JSON.",
        "Ours reads and checks the JSONL file, renders, encodes, labels and writes the dataset; "
        "TRL begins with a dataset in memory. From the cache, ours still reads the file once, to "
        "see that it is the same. The goals are 1.3 times TRL's speed, and 20 times again from the "
        "cache.",
        "Run it: `python -m bench.tokenise --write`.",
    ]


def _texts(rows: int) -> list[tuple[str, str]]:
    """Question and answer of demo rows, again and again, each told apart by a number in front."""
    lines = (DEMO / "gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    demo = [json.loads(line) for line in lines]
    picked = (demo[number % len(demo)] for number in range(rows))
    return [(f"{number}. {row['question']}", row["answer"]) for number, row in enumerate(picked)]


def _questions(rows: int) -> list[Row]:
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": answer}],
        }
        for question, answer in _texts(rows)
    ]


def _talks(rows: int) -> list[Row]:
    texts = _texts(rows * 3)
    return [
        {"messages": [turn for pair in texts[start : start + 3] for turn in _turns(*pair)]}
        for start in range(0, len(texts), 3)
    ]


def _turns(question: str, answer: str) -> list[Row]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _compare(
    title: str,
    rows: list[Row],
    arguments: argparse.Namespace,
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
) -> str:
    source, cache = Path(folder) / "rows.jsonl", Path(folder) / "cache"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    source.write_text(text, encoding="utf-8")
    config = _config(source, "messages" if "messages" in rows[0] else "prompt_completion")
    trl = _Trl(rows, tokenizer, Path(folder) / "trl")

    def fresh() -> Prepared:
        shutil.rmtree(cache, ignore_errors=True)
        return prepare(config, tokenizer, cache)

    sides = [
        Side("ours", fresh),
        Side("TRL", trl.prepare),
        Side("ours, from the cache", lambda: prepare(config, tokenizer, cache)),
    ]
    timed = measure(sides, _assert_same, arguments.rounds)
    parts = [
        f"## {title}: {len(rows):,} rows, {len(text.encode()) / 1e6:.1f} MB",
        table(_only(timed, "ours", "TRL"), len(rows), "rows/s"),
        "Once more, with the dataset in the cache:",
        table(_only(timed, "ours, from the cache", "ours", "TRL"), len(rows), "rows/s"),
    ]
    print("\n\n".join(parts), flush=True)
    return "\n\n".join(parts)


def _only(timed: Timed, *names: str) -> Timed:
    """Some sides, the first of which the others are compared with."""
    return Timed({name: timed.seconds[name] for name in names})


def _config(source: Path, form: str) -> LlmConfig:
    return LlmConfig.model_validate(
        {
            "workload": "llm",
            "name": "bench",
            "model": {"name": str(MODEL)},
            "data": {"source": str(source), "format": form, "max_length": LENGTH},
        }
    )


class _Trl:
    """TRL's trainer, asked for nothing but its preparation of data."""

    def __init__(self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        self._rows = datasets.Dataset.from_list(rows)
        self._tokenizer = tokenizer
        with torch.device("cpu"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))
        settings = SFTConfig(
            output_dir=str(folder),
            max_length=LENGTH,
            assistant_only_loss="messages" in rows[0],
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
        )
        few = self._rows.select(range(2))
        self._trainer = SFTTrainer(model, settings, train_dataset=few, processing_class=tokenizer)

    def prepare(self) -> datasets.Dataset:
        trainer = self._trainer
        return trainer._prepare_dataset(
            self._rows, self._tokenizer, trainer.args, False, None, "train"
        )


def _assert_same(outputs: Sequence[Any]) -> None:
    ours, trl, cached = outputs
    for name in ("input_ids", "labels"):
        expected = trl[name][:]
        assert ours.train[name][:] == expected, name
        assert cached.train[name][:] == expected, name
    assert any(label == -100 for row in trl["labels"][:10] for label in row)


if __name__ == "__main__":
    main()
