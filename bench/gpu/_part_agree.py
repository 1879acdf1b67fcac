"""Ways to compute the same numbers, beside each other."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu._sft_cases import rows_of
from bench.gpu._train import STILL, base_model, case_of, config_of, free, train
from bench.gpu.part import Report
from workloads.engine.pretrained.base import find_base
from workloads.llm.model import load_model

Context = Callable[[], AbstractContextManager[None]]


def attention(report: Report) -> None:
    """Logits and gradients by eager, sdpa and flash attention, against eager in fp32."""
    case = case_of(report, batch=2, length=1024)
    rows = rows_of(case, 1)
    inputs = torch.stack([torch.as_tensor(row) for row in rows]).to(report.device)
    wanted, norm = _logits(report, "eager", "fp32", inputs, nullcontext)
    eager, own = _logits(report, "eager", "bf16", inputs)
    rounding = _off(eager, wanted)
    report.check("eager in bf16: logits", rounding < 0.1, f"off by {rounding:.3%}")
    report.close("eager in bf16: gradient norm", own, norm, 0.05)

    def compare(name: str, logits: torch.Tensor, own: float) -> None:
        """Hold what another way computes against fp32: its rounding is that of eager."""
        off = _off(logits, wanted)
        report.check(
            f"{name}: logits", off < 1.5 * rounding, f"off by {off:.3%}, eager by {rounding:.3%}"
        )
        report.close(f"{name}: gradient norm", own, norm, 0.05)

    compare("sdpa in bf16", *_logits(report, "sdpa", "bf16", inputs))
    if not report.on_gpu:
        report.note("flash attention needs a GPU; without one, sdpa computes by itself")
        return

    def flash() -> AbstractContextManager[None]:
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION)

    if torch.cuda.get_device_capability() < (8, 0):
        report.note("torch's flash kernel needs compute capability 8.0")
    else:
        found = _logits(report, "sdpa", "bf16", inputs, flash)
        compare("torch's flash kernel under sdpa", *found)
    said: list[str] = []
    name = _chosen(report, said)
    report.figures["model.attention=auto takes"] = said[0]
    if name == "flash_attention_2":
        found = _logits(report, name, "bf16", inputs)
        compare("flash_attention_2", *found)
    else:
        report.note(f"flash_attention_2 was not run: {said[0]}")


def _chosen(report: Report, said: list[str]) -> str:
    config = config_of(case_of(report), base_model(report), 1, {"adapter.method": "lora"})
    model = load_model(find_base(config.model, print), config, said.append)
    return str(model.config._attn_implementation)


def _logits(
    report: Report, name: str, precision: str, inputs: torch.Tensor, kernel: Context = nullcontext
) -> tuple[torch.Tensor, float]:
    """Logits in fp32 on the host, and the norm of the embedding's gradient."""
    settings = {"model.attention": name, "train.precision": precision}
    settings["train.master_weights"] = "compute"
    config = config_of(case_of(report), base_model(report), 1, settings)
    model = load_model(find_base(config.model, print), config, print).to(report.device)
    with kernel():
        output = model(input_ids=inputs, labels=inputs, use_cache=False)
        output.loss.backward()
    norm = float(model.get_input_embeddings().weight.grad.float().norm())
    logits = output.logits.detach().float().cpu()
    del model, output
    free()
    return logits, norm


def _off(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far logits are from others, as a share of their norm."""
    return float((logits - wanted).norm() / wanted.norm())


def head(report: Report) -> None:
    """The fused head: the loss and gradients of whole logits, without holding them."""
    case, found = case_of(report, batch=4), {}
    for fused in (True, False):
        found[fused] = train(report, case, {**STILL, "train.fused_cross_entropy": fused})
    report.close("loss", found[True].loss, found[False].loss, 1e-3)
    report.close("gradient norm", found[True].norms[0], found[False].norms[0], 2e-2)
    for fused, name in ((True, "fused"), (False, "whole logits")):
        report.figures[f"{name}: tokens/s"] = round(found[fused].rate)
    small, large = found[True].allocated, found[False].allocated
    if small is not None and large is not None:
        report.check("less memory", small < large, f"{small >> 20} MiB against {large >> 20}")


def packing(report: Report) -> None:
    """Rows that share sequences: the losses of rows of their own, with every attention."""
    short = case_of(report, batch=2, mean=400)
    rows = rows_of(short, 6)
    alone = replace(short, batch=max(1, len(rows) // 6), mean=None)
    wanted = train(report, alone, STILL, 6, rows[: alone.batch * 6])
    for name in ("eager", "sdpa", "auto"):
        settings = {**STILL, "data.packing": True, "model.attention": name}
        packed = train(report, replace(short, batch=1), settings, 6, rows[: alone.batch * 6])
        report.close(f"{name}: loss of a token", packed.loss, wanted.loss, 2e-2)
        report.figures[f"{name}: tokens/s"] = round(packed.rate)
    report.figures["rows of their own: tokens/s"] = round(wanted.rate)
