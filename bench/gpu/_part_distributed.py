"""Collectives, DDP and FSDP2 with one rank: what a group of NCCL does before there are two."""

import os
import socket
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bench.gpu._train import STILL, base_model, case_of, config_of, free, train
from bench.gpu.part import Report
from workloads.engine import distributed as ranks
from workloads.engine.pretrained.base import find_base
from workloads.llm.config import LlmConfig
from workloads.llm.model import load_model


def distributed(report: Report) -> None:
    """As torchrun starts a rank: join, agree, send tensors; then train in DDP and in FSDP2."""
    alone = train(report, case_of(report), STILL, from_disk=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks.join(hang_timeout=600)
    if not report.on_gpu:
        dist.init_process_group("gloo")  # alone on a CPU, a rank of ours needs no group
    try:
        _collectives(report)
        _ddp(report)
        sharded: list[bool] = []

        def look(trainer: Any) -> None:
            sharded.append(
                all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
            )

        with mock.patch.object(LlmConfig, "strategy", lambda self, world: "fsdp2"):
            found = train(report, case_of(report), STILL, from_disk=True, look=look)
        report.check("FSDP2: every parameter is sharded", sharded == [True], sharded)
        report.close("FSDP2: loss", found.loss, alone.loss, 2e-3)
        report.close("FSDP2: gradient norm", found.norms[0], alone.norms[0], 5e-2)
        report.figures["FSDP2: tokens/s"] = round(found.rate)
        report.figures["alone: tokens/s"] = round(alone.rate)
    finally:
        ranks.leave()


def _collectives(report: Report) -> None:
    report.figures["back end"] = str(dist.get_backend())
    tensor = torch.arange(1024, dtype=torch.float32, device=report.device)
    dist.all_reduce(tensor)
    report.check("all-reduce on the device", float(tensor.sum()) == 1023 * 512, report.device)
    parts = [torch.empty_like(tensor)]
    dist.all_gather(parts, tensor)
    report.check("all-gather on the device", bool(torch.equal(parts[0], tensor)))
    scattered = torch.empty_like(tensor)
    dist.reduce_scatter_tensor(scattered, tensor)
    report.check("reduce-scatter on the device", bool(torch.equal(scattered, tensor)))
    agreed = ranks.agree(True) and not ranks.agree(False) and ranks.totals([3]) == [3]
    report.check("ranks agree over the CPU back end", agreed)
    report.check("objects travel", ranks.from_main("word") == "word" and ranks.gather(7) == [7])


def _ddp(report: Report) -> None:
    """Gradients in buckets, as DDP reduces them, are those of the plain model."""
    settings = {"train.master_weights": "compute", "model.attention": "sdpa"}
    config = config_of(case_of(report), base_model(report), 1, settings)
    inputs = torch.arange(256, device=report.device).remainder(1000).reshape(2, 128)
    found = []
    for wrapped in (False, True):
        model = load_model(find_base(config.model, print), config, print).to(report.device)
        module: Any = DistributedDataParallel(model) if wrapped else model
        module(input_ids=inputs, labels=inputs, use_cache=False).loss.backward()
        gradients = [
            parameter.grad.float().norm()
            for parameter in model.parameters()
            if parameter.grad is not None
        ]
        found.append(float(torch.stack(gradients).norm()))
        del model, module, gradients
        free()
    report.close("DDP: gradient norm", found[1], found[0], 1e-3)
