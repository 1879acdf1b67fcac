"""The script that one writes for TRL by hand; `bench.launch` starts it under other launchers.

    torchrun --standalone --nproc-per-node 2 bench/_peer_sft.py MODEL ROWS OUT

Trains one step of the demo and appends a line to OUT/steps.jsonl when it has been logged.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Note(TrainerCallback):
    """Writes when a step was logged and with which loss."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            line = {"step": state.global_step, "loss": logs["loss"], "time": time.time()}
            with (self.out / "steps.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def main(model: str, rows: str, out: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    train = load_dataset("json", data_files=rows, split="train")
    train = train.map(_as_turns, remove_columns=train.column_names)
    settings = SFTConfig(
        output_dir=out,
        max_steps=1,
        per_device_train_batch_size=8,
        learning_rate=2e-3,
        max_length=320,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=42,
        data_seed=42,
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        settings,
        train_dataset=train,
        processing_class=tokenizer,
        callbacks=[Note(Path(out))],
    )
    trainer.train()


def _as_turns(row: dict[str, str]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
