"""Predicts a measured step of another stack by the formulas for profiles."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
)

from workloads.config.sections import Profile
from workloads.device import MIB
from workloads.errors import UserError
from workloads.plan.cards import Card, find_card
from workloads.plan.gpu_memory import PlannedJob, job_of, moments, states
from workloads.plan.head import output_logits
from workloads.plan.replay import unsplit_bytes
from workloads.plan.shapes import EMBEDDINGS, HEADS, Linear, ModelShape, from_fields
from workloads.plan.work import Work

_SHAPE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
_OF_ADAPTERS = ("lora_rank", "lora_targets", "lora_dropout", "adapter_dtype")
_WITHOUT_FLASH = ("volta", "turing")
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
# cuBLAS has a workspace for each of the two threads that multiply, in the forward and in the
# backward pass.
_WORKSPACE, _WORKSPACE_OF_HOPPER = 2 * 8.125 * MIB, 2 * 32 * MIB
_OPTIMIZER = re.compile(
    r"(?P<paged>paged_)?(?P<kind>adamw?|lion|sgd|adafactor)(_torch|(?P<bnb>_bnb))?"
    r"(?P<fused>_fused)?(_(?P<states>8bit|32bit|fp32|fp16|bf16))?"
)
_MOMENTS = {"adam": 2, "adamw": 2, "lion": 1, "sgd": 0}
# bitsandbytes keeps moments of smaller tensors in fp32, an fp32 scale for every block, and the
# moments of larger tensors alone in pages, which are not torch's memory.
_FROM_8BIT, _BLOCK, _FROM_PAGED = 4096, 256, 100_000


def _lower(value: str) -> str:
    return value.lower().replace("-", "_")


def _card(value: str) -> Card:
    card = find_card(value)
    if card is None:
        raise ValueError("expected a card of the planner's table, since cards differ in kernels")
    return card


def _optimizer_name(value: str) -> str:
    name = _lower(value)
    if not _OPTIMIZER.fullmatch(name):
        raise ValueError("expected adamw, lion, adafactor or sgd, such as paged_adamw_8bit")
    return name


def _type(value: str) -> str:
    name = value.lower().removeprefix("torch.")
    return _TYPES.get(name, name)


def _listed(value: str) -> list[str]:
    return re.findall(r"[\w.-]+", value)


_Type = Annotated[Literal["fp16", "bf16", "fp32"], BeforeValidator(_type)]


class _Row(BaseModel):
    """The columns that memory depends on; those of an adapter are needed where there is one."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    card: Annotated[Card, BeforeValidator(_card)]
    model_type: Annotated[str, BeforeValidator(_lower)]
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    tie_word_embeddings: bool
    method: Annotated[
        Literal["full", "lora", "qlora_nf4", "qlora_fp4", "qlora_int8"], BeforeValidator(_lower)
    ]
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], BeforeValidator(_lower)]
    rows_per_micro_batch: PositiveInt
    tokens_per_row: PositiveInt
    lora_rank: PositiveInt = 1
    lora_targets: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0
    compute_dtype: _Type
    autocast: bool
    adapter_dtype: _Type = "fp32"
    optimizer: Annotated[str, BeforeValidator(_optimizer_name)]
    gradient_checkpointing: bool
    double_quantisation: bool = False
    fused_head: bool

    @property
    def size(self) -> int:
        """Bytes of a number in the compute type."""
        return _BYTES[self.compute_dtype]

    @property
    def has_flash(self) -> bool:
        return self.card.generation not in _WITHOUT_FLASH


class _MeasuredProfile(Profile):
    """A profile whose rows have one length, the only fact of the data that memory depends on."""

    tokens_per_row: int

    def row_length(self, shape: ModelShape) -> int:
        return self.tokens_per_row


def predict_row(row: Mapping[str, str]) -> float:
    """MiB allocated at the highest moment of the step that a row of measurements describes.

    row: columns as in tests/golden/memory/t4_peaks.csv, every value as text. The step is that of a
    plain loop over transformers and peft: it holds the logits through the backward pass, and under
    QLoRA peft has made fp32 of all that is not quantised, and so of the stream between the layers.
    sdpa is a kernel that makes no scores. Raises UserError for a missing column, a value that is
    none of those known, and a setting that no formula is for.
    """
    known = _read(row)
    shape = from_fields(known.model_dump(include=set(_SHAPE), exclude_none=True))
    _check(known, shape)
    job = job_of(_MeasuredProfile.model_validate(_settings(known)), shape, 1)
    job = replace(job, work=_work(known, job.work))
    kept, moving = _optimizer(known, job)
    planned = 2 * (job.work.stored if job.work.full else job.work.adapter_bytes) * job.trained
    highest = max(moment.memory.total for moment in moments(job)) - planned + kept
    after = states(job).total - planned + kept + output_logits(job.work) + moving
    beside = _WORKSPACE_OF_HOPPER if known.card.generation == "hopper" else _WORKSPACE
    beside += unsplit_bytes(_loading(known, job))
    return (max(highest, after) + beside) / MIB


def _read(row: Mapping[str, str]) -> _Row:
    """The row's columns as numbers and words; UserError for one that is missing or not known."""
    filled = {name: text for name in _Row.model_fields if (text := (row.get(name) or "").strip())}
    method = _lower(filled.get("method", ""))
    needed: tuple[str, ...] = () if method == "full" else _OF_ADAPTERS
    needed += ("double_quantisation",) if method in ("qlora_nf4", "qlora_fp4") else ()
    missing = next((name for name in needed if name not in filled), None)
    if missing is None:
        try:
            return _Row.model_validate(filled)
        except ValidationError as error:
            found = error.errors()[0]
            missing = str(found["loc"][0])
            if missing in filled:
                text = found["msg"].removeprefix("Value error, ")
                text = text.replace("Input should be", "expected")
                raise UserError(f"column {missing!r}: {text}, found {filled[missing]!r}") from None
    raise UserError(f"expected a value in column {missing!r}, found none; fill it")


def _check(row: _Row, shape: ModelShape) -> None:
    """Raise UserError for settings that do not go together, or that no formula is for."""
    if row.autocast and row.compute_dtype == "fp32":
        raise UserError("expected fp16 or bf16 under autocast, found compute_dtype fp32")
    if row.attention == "flash_attention_2" and not (row.has_flash and row.size == 2):
        raise UserError(
            f"expected sdpa or eager, found flash_attention_2 on a {row.card.name} in "
            f"{row.compute_dtype}, where that kernel does not run"
        )
    if row.method == "full":
        return
    matrices = dict.fromkeys(linear.name for linear in shape.linears)
    last = {name.rpartition(".")[2] for name in row.lora_targets}
    if last.isdisjoint({*matrices, "all-linear"}):
        raise UserError(
            f"expected lora_targets of {', '.join(matrices)}, or all-linear, found "
            f"{' '.join(row.lora_targets)!r}"
        )
    if tables := last & {*EMBEDDINGS, *HEADS}:
        raise UserError(
            f"lora_targets: no formula is for an adapter on {min(tables)}; leave the row out"
        )


def _settings(row: _Row) -> dict[str, Any]:
    adapter: dict[str, Any] = {"method": row.method.partition("_")[0]}
    if row.method != "full":
        adapter |= {
            "r": row.lora_rank,
            "targets": row.lora_targets,
            "dropout": row.lora_dropout,
            "double_quantisation": row.double_quantisation,
            "quantisation": "int8" if row.method == "qlora_int8" else "nf4",
        }
    return {
        "workload": "llm",
        "name": "measured",
        "tokens_per_row": row.tokens_per_row,
        "model": {"name": "measured", "attention": row.attention},
        "adapter": adapter,
        "train": {
            "per_device_batch_size": row.rows_per_micro_batch,
            "precision": row.compute_dtype,
            "master_weights": "fp32" if row.autocast else "compute",
            "gradient_checkpointing": row.gradient_checkpointing,
            "fused_cross_entropy": row.fused_head,
        },
    }


def _work(row: _Row, planned: Work) -> Work:
    wide = 4 if planned.quantised else row.size
    compute = row.size if row.autocast else wide
    work = replace(
        planned,
        compute=compute,
        autocast=row.autocast,
        keeps_logits=not row.fused_head,
        # Flash attention takes no fp32.
        expands=not row.has_flash or compute == 4,
        fp16=row.compute_dtype == "fp16" and compute == 2,
    )
    if planned.full:
        return work
    return replace(work, residual=wide, frozen=wide, adapter_bytes=_BYTES[row.adapter_dtype])


def _optimizer(row: _Row, job: PlannedJob) -> tuple[int, int]:
    """Bytes that the row's optimizer keeps, and that its step makes.

    torch's AdamW takes the roots of all second moments at once where it is not fused. Adafactor
    keeps a number for each row and column; its step makes an fp32 copy of a half-precision tensor
    and of its gradient, and two tensors more, one parameter at a time.
    """
    found = _OPTIMIZER.fullmatch(row.optimizer)
    assert found is not None
    tensors, kind, bits = list(_trained(job)), found["kind"], found["states"] or ""
    own = job.work.stored if job.work.full else job.work.adapter_bytes
    if kind == "adafactor":
        largest = max(rows * columns for rows, columns, _ in tensors)
        kept = sum(4 * (rows + columns) * count for rows, columns, count in tensors)
        return kept, (16 if own < 4 else 8) * largest
    is_of_torch = not (found["paged"] or found["bnb"] or bits.endswith("bit"))
    size = _BYTES.get(bits, own) if is_of_torch else 4
    kept = 0
    for rows, columns, count in tensors:
        numbers = rows * columns
        if found["paged"] and numbers >= _FROM_PAGED:
            continue
        is_small = bits == "8bit" and numbers >= _FROM_8BIT
        tensor = numbers + 4 * -(-numbers // _BLOCK) if is_small else size * numbers
        kept += _MOMENTS[kind] * tensor * count
    has_roots = is_of_torch and kind in ("adam", "adamw") and not found["fused"]
    return kept, size * job.trained if has_roots else 0


def _trained(job: PlannedJob) -> Iterator[tuple[int, int, int]]:
    """Rows and columns of the tensors that are trained, and how many there are of each."""
    work, shape = job.work, job.work.shape
    if work.full:
        yield shape.vocab, shape.hidden, 1 if shape.tied else 2
        for linear in shape.linears:
            yield linear.outputs, linear.inputs, linear.count
        yield shape.hidden, 1, shape.small // shape.hidden
        return
    for linear in work.adapted:
        yield work.rank, linear.inputs, linear.count
        yield linear.outputs, work.rank, linear.count


def _loading(row: _Row, job: PlannedJob) -> Iterator[tuple[int, int]]:
    """Allocations of weights as a model is loaded: (number, bytes), and (number, 0) for releases.

    A matrix is read while the one before it is quantised; then peft copies all that is not
    quantised to fp32. Their order decides a percent of a small model: rests of blocks count.
    """
    work, shape = job.work, job.work.shape
    table = shape.vocab * shape.hidden
    read = work.stored if work.full else row.size
    tables = (-1,) if shape.tied else (-1, -2)
    for number in tables:
        yield number, read * table
    matrices = [linear for _ in range(shape.layers) for linear in shape.decoder]
    for number, linear in enumerate(matrices):
        yield 3 * number, read * linear.inputs * linear.outputs
        if work.quantised and number:
            yield from _quantising(row, 3 * (number - 1), matrices[number - 1])
    if work.quantised:
        yield from _quantising(row, 3 * (len(matrices) - 1), matrices[-1])
        for number in tables:
            yield number - len(tables), 4 * table
            yield number, 0
    number = 3 * len(matrices)
    for linear in work.adapted:
        for size in (linear.inputs, linear.outputs) * linear.count:
            yield number, work.adapter_bytes * work.rank * size
            number += 1


def _quantising(row: _Row, number: int, linear: Linear) -> Iterator[tuple[int, int]]:
    """A matrix in few bits and its scales in place of the one that was read."""
    count = linear.inputs * linear.outputs
    if row.method == "qlora_int8":
        sizes = 4 * linear.outputs, count
    else:
        sizes = count // 64 * (1 if row.double_quantisation else 4), count // 2
    for part, size in enumerate(sizes, 1):
        yield number + part, size
    yield number, 0
