"""Predicts a measured step of another stack by the formulas for profiles."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from workloads.config.sections import Profile
from workloads.device import MIB
from workloads.errors import UserError
from workloads.plan.gpu_memory import job_of, moments
from workloads.plan.shapes import from_fields

if TYPE_CHECKING:
    from workloads.plan.shapes import ModelShape

_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
# Two workspaces of cuBLAS, one for each thread that multiplies: the forward and the backward
# pass's. On Hopper and later they have 32 MiB each.
_WORKSPACE = 2 * 8.125 * MIB


class _MeasuredProfile(Profile):
    """A profile whose rows have one length, the only fact of the data that memory depends on."""

    tokens_per_row: int

    def row_length(self, shape: "ModelShape") -> int:
        return self.tokens_per_row


def predict_row(row: Mapping[str, str]) -> float:
    """MiB allocated at the highest moment of the step that a row of measurements describes.

    row: columns as in tests/golden/memory/t4_peaks.csv, every value as text. The step is that of a
    plain loop over transformers and peft: it holds the logits through the backward pass, and under
    QLoRA peft has made fp32 of all that is not quantised, and so of the stream between the layers.
    Raises UserError for a missing column or a value that is none of those known.
    """
    shape = from_fields(
        {name: int(_value(row, name)) for name in _SHAPE if row.get(name)}
        | {
            "model_type": _value(row, "model_type"),
            "tie_word_embeddings": _is(row, "tie_word_embeddings"),
        }
    )
    precision, quantised = _value(row, "compute_dtype"), _value(row, "method").startswith("qlora")
    config = _MeasuredProfile.model_validate(
        {
            "workload": "llm",
            "name": "measured",
            "tokens_per_row": int(_value(row, "tokens_per_row")),
            "model": {
                "name": row.get("model") or "measured",
                "attention": _value(row, "attention"),
            },
            "adapter": {
                "method": "qlora" if quantised else _value(row, "method"),
                "r": int(_value(row, "lora_rank")),
                "targets": _value(row, "lora_targets").split(),
                "dropout": float(row.get("lora_dropout") or 0),
                "double_quantisation": _is(row, "double_quantisation"),
                "quantisation": "int8" if "int8" in row["method"] else "nf4",
            },
            "train": {
                "per_device_batch_size": int(_value(row, "rows_per_micro_batch")),
                "precision": precision,
                "gradient_checkpointing": _is(row, "gradient_checkpointing"),
                "fused_cross_entropy": _is(row, "fused_head"),
            },
        }
    )
    job = job_of(config, shape, 1)
    autocast = _is(row, "autocast")
    wide = 4 if quantised else _BYTES[precision]
    work = replace(
        job.work,
        compute=_BYTES[precision] if autocast else wide,
        residual=wide,
        frozen=wide,
        fp16=precision == "fp16" and not quantised,
        autocast=autocast,
        adapter_bytes=_BYTES[_value(row, "adapter_dtype")],
        keeps_logits=True,
    )
    highest = max(moment.memory.total for moment in moments(replace(job, work=work)))
    return (highest + _WORKSPACE) / MIB


def _value(row: Mapping[str, str], name: str) -> str:
    value = row.get(name, "")
    if not value:
        raise UserError(f"expected a value in column {name!r}, found none; fill it")
    return value


def _is(row: Mapping[str, str], name: str) -> bool:
    return row.get(name, "").lower() == "true"
