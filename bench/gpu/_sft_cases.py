"""What bench/gpu/sft.py asks: models of real shape, rows of random tokens, who takes part.

Needs no GPU.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, LlamaConfig

from bench._pair import ROOT
from workloads.llm.config import LlmConfig
from workloads.plan.estimate import Breakdown, estimate

OURS, COMPILED, HAND = "ours", "ours, compiled", "a loop by hand"
TRL, TRL_LIGER, TRL_GROUPED = "TRL", "TRL + Liger", "TRL, grouped by length"
WARM = 4
TOKENIZER = ROOT / "data" / "demo" / "tiny-llama"
# So small that weights stay what they are: every row has the same loss whenever it comes.
RATE = 1e-12
ONE_B = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
EIGHT_B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
Rows = list[np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model's shape, how many rows of which length, and who takes part.

    batch: sequences a step of ours. peer_batch: rows a micro-batch of the peers, which take as
    many micro-batches a step as give them about as many tokens.
    """

    name: str
    title: str
    shape: Mapping[str, Any]
    length: int
    batch: int
    sides: tuple[str, ...]
    goals: Mapping[str, float] = field(default_factory=dict)
    mean: int | None = None  # tokens of a row on average; none: all have `length`
    lora: bool = False

    @property
    def attended(self) -> int:
        """Tokens of a row on average: those that attend to each other."""
        return self.mean or self.length

    @property
    def accumulation(self) -> int:
        """Micro-batches a step of the peers."""
        return max(1, round(self.length / self.attended))

    def config(
        self, steps: int = WARM + 1, compiled: bool = False, model: str = "model"
    ) -> LlmConfig:
        """The profile that ours trains by."""
        return LlmConfig.model_validate(
            {
                "workload": "llm",
                "name": "bench",
                "model": {"name": model, "random_init": True},
                "data": {"source": "rows", "max_length": self.length, "packing": bool(self.mean)},
                "optim": {"learning_rate": RATE},
                "train": {
                    "max_steps": steps,
                    "per_device_batch_size": self.batch,
                    "compile": compiled,
                    "log_every": 10,
                },
                "adapter": {"method": "lora", "dropout": 0.0} if self.lora else {},
                "tracking": {"tensorboard": False},
            }
        )

    def plan(self) -> Breakdown:
        """What `tatara plan` says of it."""
        with model_folder(self) as folder:
            return estimate(self.config(model=str(folder)), gpus=1, env={})


_ALL = (OURS, COMPILED, TRL, TRL_LIGER, HAND)
CASES = {
    case.name: case
    for case in (
        Case(
            "full",
            "Llama-1B, all weights, 8 rows of 2048 a step",
            ONE_B,
            2048,
            8,
            _ALL,
            {TRL: 1.25, TRL_LIGER: 1.1, HAND: 0.97},
        ),
        Case(
            "short",
            "Llama-1B, all weights, rows of 400 tokens on average, 16k tokens a step",
            ONE_B,
            2048,
            8,
            (OURS, COMPILED, TRL, TRL_GROUPED),
            {TRL: 2.5, TRL_GROUPED: 1.3},
            mean=400,
        ),
        Case(
            "lora",
            "Llama-8B, LoRA r16 on q, k, v and o, 2 rows of 4096 a step",
            EIGHT_B,
            4096,
            2,
            (OURS, COMPILED, TRL, TRL_LIGER),
            {TRL: 1.3},
            lora=True,
        ),
    )
}


@contextlib.contextmanager
def model_folder(case: Case) -> Iterator[Path]:
    """A model as a profile names one: config.json and a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(**case.shape, max_position_embeddings=8192).save_pretrained(folder)
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
        yield Path(folder)


def rows_of(case: Case, steps: int) -> Rows:
    """Random token ids; the same for all sides, enough for every step."""
    chance = np.random.default_rng(0)
    if case.mean is None:
        lengths = np.full(case.batch * steps, case.length)
    else:
        spread = 0.6  # of the logarithm
        wanted = case.batch * steps * case.length // case.mean
        drawn = chance.lognormal(np.log(case.mean) - spread**2 / 2, spread, wanted)
        lengths = np.clip(drawn, 8, case.length).astype(np.int64)
    vocabulary = int(case.shape["vocab_size"])
    return [chance.integers(3, vocabulary, length) for length in lengths]
