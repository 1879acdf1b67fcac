"""Predicts a measured step of another stack by the formulas for profiles."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workloads.config.sections import Profile
from workloads.device import MIB
from workloads.errors import UserError
from workloads.plan.activations import Work
from workloads.plan.cards import find_card
from workloads.plan.gpu_memory import STATE_8BIT, PlannedJob, job_of, moments, states
from workloads.plan.head import output_logits
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
_WITHOUT_FLASH = ("volta", "turing")
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
    job = job_of(_MeasuredProfile.model_validate(_settings(row)), shape, 1)
    job = replace(job, work=_work(row, job.work))
    kept, moving = _optimizer(row, job)
    highest = max(moment.memory.total for moment in moments(job))
    return (
        kept + max(highest, states(job).total + output_logits(job.work) + moving) + _WORKSPACE
    ) / MIB


def _settings(row: Mapping[str, str]) -> dict[str, Any]:
    method, autocast = _value(row, "method"), _is(row, "autocast")
    adapter: dict[str, Any] = {"method": method.partition("_")[0]}
    if method != "full":
        adapter |= {
            "r": int(_value(row, "lora_rank")),
            "targets": _value(row, "lora_targets").split(),
            "dropout": float(row.get("lora_dropout") or 0),
            "double_quantisation": _is(row, "double_quantisation"),
            "quantisation": "int8" if "int8" in method else "nf4",
        }
    return {
        "workload": "llm",
        "name": "measured",
        "tokens_per_row": int(_value(row, "tokens_per_row")),
        "model": {"name": row.get("model") or "measured", "attention": _value(row, "attention")},
        "adapter": adapter,
        "train": {
            "per_device_batch_size": int(_value(row, "rows_per_micro_batch")),
            "precision": _value(row, "compute_dtype"),
            "master_weights": "fp32" if autocast else "compute",
            "gradient_checkpointing": _is(row, "gradient_checkpointing"),
            "fused_cross_entropy": _is(row, "fused_head"),
        },
    }


def _work(row: Mapping[str, str], planned: Work) -> Work:
    precision, autocast = _value(row, "compute_dtype"), _is(row, "autocast")
    work = replace(planned, autocast=autocast, keeps_logits=True)
    if planned.full:
        return work
    card = find_card(row.get("card", ""))
    wide = 4 if planned.quantised else _BYTES[precision]
    return replace(
        work,
        compute=_BYTES[precision] if autocast else wide,
        residual=wide,
        frozen=wide,
        expands=card is not None and card.generation in _WITHOUT_FLASH,
        fp16=precision == "fp16" and not planned.quantised,
        adapter_bytes=_BYTES[_value(row, "adapter_dtype")],
    )


def _optimizer(row: Mapping[str, str], job: PlannedJob) -> tuple[int, int]:
    """Bytes that the row's optimizer keeps beside those of the plan's AdamW, and what its step
    makes. Raises UserError for an optimizer that is not known.

    torch's AdamW takes the roots of all second moments at once where it is not fused. bitsandbytes'
    paged optimizers keep their states outside of torch's memory.
    """
    name, work = _value(row, "optimizer"), job.work
    own = work.stored if work.full else work.adapter_bytes
    usual = 2 * own * job.trained
    if "8bit" in name:
        return (0 if "paged" in name else int(2 * STATE_8BIT * job.trained)) - usual, 0
    if "adam" in name:
        size = 4 if "fp32" in name or "32bit" in name else own
        kept = 0 if "paged" in name else 2 * size * job.trained
        return kept - usual, 0 if "fused" in name else size * job.trained
    if name.startswith(("sgd", "adafactor")):
        return -usual, 0
    raise UserError(f"expected an optimizer of adamw, sgd, adafactor or 8bit, found {name!r}")


def _value(row: Mapping[str, str], name: str) -> str:
    value = row.get(name, "")
    if not value:
        raise UserError(f"expected a value in column {name!r}, found none; fill it")
    return value


def _is(row: Mapping[str, str], name: str) -> bool:
    return row.get(name, "").lower() == "true"
