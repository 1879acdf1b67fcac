"""What `tatara plan` says against what a step allocates, reserves, and its process holds."""

import shutil
from itertools import product
from typing import Any

import torch

from bench.gpu import _machine
from bench.gpu._sft_cases import Case
from bench.gpu._train import LARGE, STILL, case_of, shape_of, train
from bench.gpu.part import Report
from workloads.device import MIB

# Largest error of allocated bytes, and how far below what is measured a plan may be.
MOST, UNDER = 0.08, 0.03


def settings(report: Report) -> list[tuple[int, int, bool, dict[str, Any]]]:
    """Rows a micro-batch, tokens a row, whether it is the large model, and settings: 24 of them."""
    found: list[tuple[int, int, bool, dict[str, Any]]] = []
    for batch, again, kind in product((1, 4, 16), (False, True), ("full", "lora")):
        found.append((batch, 512 if batch == 16 else 2048, False, _kind(kind, again)))
    for attention in ("eager", "sdpa"):
        found.append((2, 1024, False, {**_kind("full", False), "model.attention": attention}))
        found.append((2, 1024, False, {**_kind("lora", True), "model.attention": attention}))
    found.append((4, 1024, False, {**_kind("full", False), "train.fused_cross_entropy": False}))
    found.append((4, 1024, False, {**_kind("full", False), "train.master_weights": "compute"}))
    found.append((2, 1024, False, {**_kind("full", False), "train.precision": "fp32"}))
    found.append((2, 1024, False, {**_kind("full", False), "train.precision": "fp16"}))
    found.append((4, 2048, False, {**_kind("full", True), "train.global_batch_size": 8}))
    found.append((4, 1024, False, {**_kind("lora", False), "adapter.targets": ["all-linear"]}))
    if _machine.version("bitsandbytes"):
        found.append((4, 1024, False, {**_kind("full", False), "optim.optimizer": "adamw_8bit"}))
        found.append((4, 1024, False, _kind("qlora", False)))
        found.append((4, 1024, False, _kind("qlora", True)))
        if report.on_gpu:
            found.append((2, 4096, True, _kind("qlora", True)))
    if report.on_gpu:
        found.append((2, 2048, True, _kind("lora", True)))
    return found if report.on_gpu else found[::6]


def _kind(method: str, again: bool) -> dict[str, Any]:
    return {"adapter.method": method, "adapter.dropout": 0.0, "train.gradient_checkpointing": again}


def planned(report: Report) -> None:
    """Three steps of each setting; on a CPU the plans alone are there, and nothing to compare."""
    for batch, length, large, own in settings(report):
        case = case_of(report, batch, length)
        if large:
            case = Case("large", "", shape_of(report, large), length, batch, ())
        name = f"{'8B' if large else '1B'}, {batch} x {length}, " + ", ".join(
            f"{key.rpartition('.')[2]}={value}"
            for key, value in own.items()
            if "dropout" not in key
        )
        steps = 3 * (own.get("train.global_batch_size", batch) // batch)
        try:
            found = train(report, case, {**STILL, **own}, max(3, steps), large=large)
        except Exception as error:  # one setting that fails costs only itself
            report.check(name, False, f"{type(error).__name__}: {str(error)[:300]}")
            continue
        row = _row(case, own, found.memory)
        report.memory.append(row)
        said, measured = row["planned_allocated_mib"], row["peak_allocated_mib"]
        if measured is None:
            report.check(f"{name}: planned", said > 0, f"{said:.0f} MiB")
            continue
        off = said / measured - 1
        report.check(name, -UNDER <= off <= MOST,
                     f"planned {said:.0f} MiB, allocated {measured:.0f}, {off:+.1%}")  # fmt: skip
    if report.on_gpu:
        # 16 GB that no other part needs.
        shutil.rmtree(report.work / "models" / LARGE, ignore_errors=True)


def _row(case: Case, own: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    """A row in the form of tests/golden/memory/t4_peaks.csv, with what was planned beside it."""
    measured = memory["measured"] or {}
    method = own.get("adapter.method", "full")
    precision = own.get("train.precision", "bf16")
    row: dict[str, Any] = {
        "card": memory["card"] or "CPU",
        "torch": torch.__version__,
        "transformers": _machine.version("transformers"),
        "peft": _machine.version("peft"),
        "bitsandbytes": _machine.version("bitsandbytes") or "",
        "model_type": "llama",
        **{name: case.shape.get(name, "") for name in _SHAPE},
        "tie_word_embeddings": str(case.shape["tie_word_embeddings"]).lower(),
        "method": "qlora_nf4" if method == "qlora" else method,
        "attention": own.get("model.attention", "auto"),
        "rows_per_micro_batch": case.batch,
        "tokens_per_row": case.length,
        "lora_rank": "" if method == "full" else 16,
        "lora_targets": "" if method == "full" else " ".join(own.get("adapter.targets", _TARGETS)),
        "lora_dropout": 0,
        "compute_dtype": precision,
        "master_weights": own.get("train.master_weights", "fp32"),
        "optimizer": own.get("optim.optimizer", "adamw"),
        "gradient_checkpointing": str(own["train.gradient_checkpointing"]).lower(),
        "double_quantisation": "true" if method == "qlora" else "",
        "fused_head": str(own.get("train.fused_cross_entropy", True)).lower(),
        "accumulation": own.get("train.global_batch_size", case.batch) // case.batch,
    }
    for name in ("allocated", "reserved", "process"):
        row[f"planned_{name}_mib"] = _mib(memory["planned"][name])
        column = "process_mib" if name == "process" else f"peak_{name}_mib"
        row[column] = _mib(measured.get(name))
    return row


_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "head_dim", "intermediate_size", "vocab_size")  # fmt: skip


def _mib(size: int | None) -> float | None:
    return None if size is None else round(size / MIB, 3)
