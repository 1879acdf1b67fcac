"""What does a run cost each step, on top of the libraries' own loop? Tiny model, logged every step.

    python -m bench.step_cost            # prints the figures
    python -m bench.step_cost --write    # and writes docs/benchmarks/step-cost.md

The same tiny Llama on the same rows in the same order: our trainer with its run directory
(heartbeat, metrics.jsonl, guards), TRL's SFTTrainer, and the bare Trainer. All must log the same
losses. The model is so small and the rows so short that the loop itself is most of a step. The
three take one step each in turns, every one in a thread that waits while the others step, so that
a busy moment of the machine hits all of them.
"""

import argparse
import gc
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import datasets
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTTrainer

from bench._pair import ROOT, benchmark_parser, facts, write_page
from bench._rank import rank_session
from workloads.engine.training.trainer import RunTrainer
from workloads.llm.config import LlmConfig
from workloads.llm.data.collate import Collate
from workloads.llm.train import LlmTrainer, arguments
from workloads.run import Run
from workloads.run.session import Session

MODEL = ROOT / "data" / "demo" / "tiny-llama"
GOAL = 0.3  # milliseconds over the bare Trainer
ROWS, LENGTH, WARM = 64, 16, 20
PEER, BARE = "TRL's SFTTrainer", "transformers' Trainer"


@dataclass
class Turns:
    """Whose step it is: a side steps, hands on, and waits until all others have stepped."""

    sides: int
    _turn: int = 0
    _change: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, side: int) -> None:
        with self._change:
            self._change.wait_for(lambda: self._turn == side)

    def hand_on(self) -> None:
        with self._change:
            self._turn = (self._turn + 1) % self.sides
            self._change.notify_all()


@dataclass
class Clock(TrainerCallback):
    """Times a side's steps, from the end of one to the end of the next, without the waiting.

    On the clock and in processor time of the thread that trains; milliseconds.
    """

    side: int
    turns: Turns
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    _since: tuple[float, float] = (0.0, 0.0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        wall, processor = time.perf_counter(), time.thread_time()
        if state.global_step > WARM:
            self.wall.append((wall - self._since[0]) * 1e3)
            self.processor.append((processor - self._since[1]) * 1e3)
        self.turns.hand_on()
        if state.global_step < state.max_steps:
            self.turns.wait(self.side)
        self._since = time.perf_counter(), time.thread_time()


@dataclass(frozen=True)
class Trained:
    """What one side did in a round."""

    losses: list[float]
    clock: Clock


def main() -> None:
    parser = benchmark_parser("step-cost", __doc__, rounds=6)
    parser.add_argument("--steps", type=int, default=220)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rounds = []
    for number in range(options.rounds):
        rounds.append(_round(options.steps, number))
        print(_table(rounds[-1:]), flush=True)
    text = _table(rounds)
    known = facts(
        ["torch", "transformers", "trl", "accelerate"],
        [
            "workloads/engine/training/trainer.py",
            "workloads/engine/training/callbacks.py",
            "bench/step_cost.py",
        ],
        options.machine,
    )
    print(f"{text}\n\n{known}")
    if options.write:
        print(f"wrote {write_page('step-cost', [*_introduction(options), text, known])}")


def _introduction(options: argparse.Namespace) -> list[str]:
    return [
        "# What a step costs on top of the library's loop",
        f"The demo's tiny Llama, one row of {LENGTH} tokens a step, one process, one thread at a "
        "time, every step logged: our trainer, TRL's SFTTrainer and the bare Trainer take one step "
        f"each in turns, {options.steps} of them, {options.rounds} times over. All three log the "
        "same losses (to 1e-5). Ours also writes a row of metrics.jsonl a step, counts batches and "
        "tokens, keeps the heartbeat, and looks for losses and gradients that are not finite. A "
        "cost is the median over all steps of the difference to the peer's step of the same turn; "
        "the range is that of the rounds' medians. Another side begins the turns each round.",
        f"The goal is at most {GOAL} ms a step over the bare Trainer. Trackers are off on all "
        "sides: ours are fed by a thread of their own.",
        "Run it: `python -m bench.step_cost --write`.",
    ]


def _rows() -> datasets.Dataset:
    """Rows of token ids drawn once: prepared on all sides, so that only the loop is timed."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (ROWS, LENGTH), generator=generator).tolist()
    return datasets.Dataset.from_dict(
        {
            "input_ids": ids,
            "labels": ids,
            "seq_lengths": [[LENGTH]] * ROWS,
            "row_ids": [[number] for number in range(ROWS)],
        }
    )


def _config(steps: int) -> LlmConfig:
    return LlmConfig.model_validate(
        {
            "workload": "llm",
            "name": "bench",
            "model": {"name": str(MODEL), "random_init": True},
            "data": {"source": "rows.jsonl"},
            "train": {
                "max_steps": steps,
                "precision": "fp32",
                "log_every": 1,
                "fused_cross_entropy": False,
            },
            "tracking": {"tensorboard": False},
        }
    )


def _model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))


@dataclass(frozen=True)
class _Plain:
    """Our batches without what only our trainer takes out of them."""

    collate: Collate

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collate(rows)
        return {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}


def _ours(config: LlmConfig, session: Session) -> RunTrainer:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return LlmTrainer(
        profile=config,
        session=session,
        model=_model(),
        args=arguments(config, session, False),
        processing_class=tokenizer,
        train_dataset=_rows(),
        data_collator=Collate(tokenizer.pad_token_id),
    )


def _peer(kind: type[Trainer], config: LlmConfig, session: Session) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return kind(
        model=_model(),
        args=arguments(config, session, False),
        processing_class=tokenizer,
        train_dataset=_rows(),
        data_collator=_Plain(Collate(tokenizer.pad_token_id)),
    )


def _round(steps: int, number: int) -> dict[str, Trained]:
    """Train all sides, step by step in turns; each round another one begins."""
    sides: dict[str, Callable[[LlmConfig, Session], Trainer]]
    sides = {"ours": _ours, PEER: partial(_peer, SFTTrainer), BARE: partial(_peer, Trainer)}
    order = [*list(sides)[number % 3 :], *list(sides)[: number % 3]]
    turns = Turns(len(sides))
    with tempfile.TemporaryDirectory() as folder, rank_session(Path(folder)) as session:
        trainers, clocks = {}, {}
        for name, build in sides.items():
            own = session if name == "ours" else Session(Run(Path(folder) / name))
            trainers[name], clocks[name] = (
                build(_config(steps), own),
                Clock(order.index(name), turns),
            )
            trainers[name].add_callback(clocks[name])
        gc.collect()
        with ThreadPoolExecutor(len(sides)) as pool:
            for done in [pool.submit(_train, trainers[name], clocks[name]) for name in sides]:
                done.result()
    found = {}
    for name, trainer in trainers.items():
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        found[name] = Trained(losses, clocks[name])
    _assert_same(found)
    return found


def _train(trainer: Trainer, clock: Clock) -> None:
    torch.set_num_threads(1)
    clock.turns.wait(clock.side)
    trainer.train()


def _assert_same(found: dict[str, Trained]) -> None:
    ours = found["ours"].losses
    for name, side in found.items():
        gap = max(abs(a - b) for a, b in zip(ours, side.losses, strict=True))
        assert gap < 1e-5, f"{name} logged other losses than ours, by up to {gap}"


def _table(rounds: list[dict[str, Trained]]) -> str:
    heads = ["side", "step", "ours costs more by (range)", "in processor time (range)"]
    lines = [heads, ["---"] * len(heads)]
    for name in rounds[0]:
        wall = median(step for found in rounds for step in found[name].clock.wall)
        cells = [name, f"{wall:.2f} ms", "–", "–"]
        if name != "ours":
            cells[2] = _cost([_gaps(found["ours"], found[name], "wall") for found in rounds])
            cells[3] = _cost([_gaps(found["ours"], found[name], "processor") for found in rounds])
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _gaps(ours: Trained, peer: Trained, kind: Literal["wall", "processor"]) -> list[float]:
    pairs = zip(vars(ours.clock)[kind], vars(peer.clock)[kind], strict=True)
    return [mine - theirs for mine, theirs in pairs]


def _cost(gaps: list[list[float]]) -> str:
    middles = [median(item) for item in gaps]
    whole = median(gap for item in gaps for gap in item)
    return f"**{whole:+.3f} ms** ({min(middles):+.3f} to {max(middles):+.3f})"


if __name__ == "__main__":
    main()
