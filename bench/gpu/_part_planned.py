"""What `tatara plan` says against what a step allocates, reserves, and its process holds."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from bench.gpu import _machine
from bench.gpu._sft_cases import EIGHT_B, ONE_B, Case
from bench.gpu._train import STILL, case_of, model_folder, train
from bench.gpu.part import Report
from workloads.device import MIB

# Largest error of allocated bytes, and how far below what is measured a plan may be.
MOST, UNDER = 0.08, 0.03
# An 8B's widths: all of its layers would be written and read for a minute.
FEW_LAYERS = {**EIGHT_B, "num_hidden_layers": 8}


@dataclass(frozen=True)
class Setting:
    """Rows a micro-batch, tokens a row, settings by their names, and the model's shape."""

    batch: int
    length: int
    own: Mapping[str, Any]
    shape: Mapping[str, Any]

    @property
    def name(self) -> str:
        model = {ONE_B["hidden_size"]: "1B", EIGHT_B["hidden_size"]: "8B"}
        named = f"{model[self.shape['hidden_size']]}, {self.batch} x {self.length}"
        if self.shape not in (ONE_B, EIGHT_B):
            named += f", {self.shape['num_hidden_layers']} layers"
        said = [f"{key.rpartition('.')[2]}={value}" for key, value in self.own.items()
                if "dropout" not in key]  # fmt: skip
        return ", ".join([named, *said])


def settings(report: Report) -> list[Setting]:
    """24 of them on a GPU, where bitsandbytes is there; a sixth of them on a CPU."""
    found: list[Setting] = []

    def add(
        batch: int, length: int, own: Mapping[str, Any], shape: Mapping[str, Any] = ONE_B
    ) -> None:
        found.append(Setting(batch, length, own, shape))

    for batch, again, kind in product((1, 4, 16), (False, True), ("full", "lora")):
        add(batch, 512 if batch == 16 else 2048, _kind(kind, again))
    for attention in ("eager", "sdpa"):
        add(2, 1024, _kind("full", False) | {"model.attention": attention})
        add(2, 1024, _kind("lora", True) | {"model.attention": attention})
    add(4, 1024, _kind("full", False) | {"train.fused_cross_entropy": False})
    add(4, 1024, _kind("full", False) | {"train.master_weights": "compute"})
    add(2, 1024, _kind("full", False) | {"train.precision": "fp32"})
    add(2, 1024, _kind("full", False) | {"train.precision": "fp16"})
    add(4, 2048, _kind("full", True) | {"train.global_batch_size": 8})
    add(4, 1024, _kind("lora", False) | {"adapter.targets": ["all-linear"]})
    if _machine.version("bitsandbytes"):
        add(4, 1024, _kind("full", False) | {"optim.optimizer": "adamw_8bit"})
        add(4, 1024, _kind("qlora", False))
        add(4, 1024, _kind("qlora", True))
        if report.on_gpu:
            add(2, 4096, _kind("qlora", True), FEW_LAYERS)
    if report.on_gpu:
        add(2, 2048, _kind("lora", True), EIGHT_B)
    return found if report.on_gpu else found[::6]


def _kind(method: str, again: bool) -> dict[str, Any]:
    return {"adapter.method": method, "adapter.dropout": 0.0, "train.gradient_checkpointing": again}


def planned(report: Report) -> None:
    """Three steps of each setting; on a CPU the plans alone are there, and nothing to compare."""
    for setting in settings(report):
        case = case_of(report, setting.batch, setting.length, shape=setting.shape)
        own, name = setting.own, setting.name
        steps = 3 * (own.get("train.global_batch_size", setting.batch) // setting.batch)
        # What is quantised is read.
        from_disk = own["adapter.method"] == "qlora"
        try:
            found = train(report, case, {**STILL, **own}, max(3, steps), from_disk=from_disk)
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
        # 6 GB that no other part needs.
        shutil.rmtree(model_folder(report, FEW_LAYERS), ignore_errors=True)


def _row(case: Case, own: Mapping[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
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
