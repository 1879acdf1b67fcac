"""Trainings of a 1B in the ways that a profile can ask for."""

import importlib.util

from bench.gpu._train import LEARNS, STILL, Trained, case_of, learns, same_rows, train
from bench.gpu.part import Report, Skipped
from workloads.device import MIB

STEPS = 10


def precision(report: Report) -> None:
    """bf16, fp16 and fp32 learn one batch by heart."""
    case = case_of(report)
    for name in ("bf16", "fp16", "fp32"):
        settings = {**LEARNS, "train.precision": name}
        trained = train(report, case, settings, STEPS, same_rows(case, STEPS))
        learns(report, name, trained)
        _figures(report, name, trained)


def checkpointing(report: Report) -> None:
    """The same losses and gradients, in less memory."""
    case = case_of(report, batch=4)
    found = {}
    for on in (False, True):
        settings = {**STILL, "train.gradient_checkpointing": on}
        found[on] = train(report, case, settings)
        _figures(report, "checkpointing" if on else "without", found[on])
    report.close("loss", found[True].loss, found[False].loss, 1e-3)
    report.close("gradient norm", found[True].norms[0], found[False].norms[0], 2e-2)
    _less(report, "with checkpointing", found[True], found[False])


def optimizer(report: Report) -> None:
    """8-bit AdamW learns as AdamW does, in less memory."""
    _needs_bitsandbytes()
    case, found = case_of(report), {}
    for name in ("adamw", "adamw_8bit"):
        settings = {**LEARNS, "optim.optimizer": name}
        found[name] = train(report, case, settings, STEPS, same_rows(case, STEPS))
        learns(report, name, found[name])
        _figures(report, name, found[name])
    report.close("last loss", found["adamw_8bit"].losses[-1], found["adamw"].losses[-1], 0.15)
    _less(report, "with 8-bit moments", found["adamw_8bit"], found["adamw"])


def quantised(report: Report) -> None:
    """A LoRA adapter learns over a base in nf4, and in int8."""
    _needs_bitsandbytes()
    case = case_of(report)
    lora = {**LEARNS, "adapter.dropout": 0.0, "optim.learning_rate": 2e-3}
    found = {}
    for name in ("lora", "nf4", "int8"):
        settings = {**lora, "adapter.method": "lora"}
        if name != "lora":
            settings |= {"adapter.method": "qlora", "adapter.quantisation": name}
        rows = same_rows(case, STEPS)
        found[name] = train(report, case, settings, STEPS, rows, from_disk=True)
    for name, trained in found.items():
        learns(report, name, trained)
        _figures(report, name, trained)
    for name in ("nf4", "int8"):
        report.close(f"{name}: first loss", found[name].losses[0], found["lora"].losses[0], 0.2)
        _less(report, f"base in {name}", found[name], found["lora"])


def compiled(report: Report) -> None:
    """torch.compile changes the speed and nothing else."""
    case, found = case_of(report, batch=4), {}
    for on in (False, True):
        found[on] = train(report, case, {**STILL, "train.compile": on}, 12)
        _figures(report, "compiled" if on else "as it is", found[on])
    # Fused kernels round less often than single ones.
    report.close("loss", found[True].loss, found[False].loss, 2e-3)
    report.close("gradient norm", found[True].norms[0], found[False].norms[0], 5e-2)
    report.figures["compiled is faster by"] = round(found[True].rate / found[False].rate, 3)


def _figures(report: Report, name: str, trained: Trained) -> None:
    report.figures[f"{name}: tokens/s"] = round(trained.rate)
    if trained.allocated is not None:
        report.figures[f"{name}: MiB allocated"] = round(trained.allocated / MIB)
        report.figures[f"{name}: MiB planned"] = round(
            (trained.memory["planned"]["allocated"] or 0) / MIB
        )


def _less(report: Report, name: str, small: Trained, large: Trained) -> None:
    """Memory is measured on a GPU alone."""
    if small.allocated is None or large.allocated is None:
        report.note(f"{name}: memory is not measured on a CPU")
        return
    found = f"{small.allocated / MIB:.0f} MiB against {large.allocated / MIB:.0f}"
    report.check(f"{name}: less memory", small.allocated < large.allocated, found)


def _needs_bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Skipped("the package bitsandbytes is not installed")
