"""Rows of tests/golden/memory/own_peaks.csv, which a run on a GPU writes, as the plan has them."""

from collections.abc import Mapping
from typing import Any

from workloads.config.sections import Profile
from workloads.device import MIB
from workloads.plan.estimate import breakdown_of
from workloads.plan.shapes import ModelShape, from_fields

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "head_dim", "intermediate_size", "vocab_size")  # fmt: skip


class RowProfile(Profile):
    """A profile whose rows have one length."""

    length: int = 0

    def row_length(self, shape: ModelShape) -> int:
        return self.length


def own_planned_mib(row: Mapping[str, str]) -> float:
    """MiB that the plan of today counts as allocated for a row, whose values are text."""
    fields: dict[str, Any] = {name: int(row[name]) for name in _SIZES if row[name]}
    fields |= {"model_type": row["model_type"]}
    fields |= {"tie_word_embeddings": row["tie_word_embeddings"] == "true"}
    is_full = row["method"] == "full"
    batch = int(row["rows_per_micro_batch"])
    adapter = {"method": "full"} if is_full else {
        "method": row["method"].partition("_")[0],
        "r": int(row["lora_rank"]),
        "targets": row["lora_targets"].split(),
        "dropout": float(row["lora_dropout"]),
    }  # fmt: skip
    config = RowProfile.model_validate(
        {
            "workload": "llm",
            "name": "own",
            "length": int(row["tokens_per_row"]),
            "model": {"name": "own", "attention": row["attention"]},
            "adapter": adapter,
            "optim": {"optimizer": row["optimizer"]},
            "train": {
                "per_device_batch_size": batch,
                "global_batch_size": batch * int(row["accumulation"]),
                "precision": row["compute_dtype"],
                "master_weights": row["master_weights"],
                "gradient_checkpointing": row["gradient_checkpointing"] == "true",
                "fused_cross_entropy": row["fused_head"] == "true",
            },
        }
    )
    found = breakdown_of(config, from_fields(fields), "", 1).allocated
    assert found is not None
    return found / MIB
