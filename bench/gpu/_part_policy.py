"""Steps of the robot policy and of GRPO at their real shapes."""

from dataclasses import replace

import torch

from bench.gpu import _grpo_cases, _grpo_sides, _vla_sides
from bench.gpu._train import free
from bench.gpu.part import Report
from workloads.device import GIB

OFT = {
    "action_head.kind": "oft",
    "action_head.chunk": 8,
    "action_head.decode": "l1",
    "action_head.proprio": True,
    "adapter.targets": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def vla(report: Report) -> None:
    """OpenVLA's LoRA and OFT steps at batch 1, 8 and 16; on a CPU a tiny one at 1 and 2."""
    for kind, settings in (("LoRA", {}), ("OFT", OFT)):
        for batch in (1, 8, 16) if report.on_gpu else (1, 2):
            case = replace(
                _vla_sides.CASES["batch16"],
                batch=batch,
                tiny=not report.on_gpu,
                settings=settings,
            )
            name = f"{kind}, batch {batch}"
            free()  # what a turn before held that ended with an error
            try:
                turn = _vla_sides.take_turn(case, _vla_sides.OURS, _vla_sides.WARM + 4)
            except torch.OutOfMemoryError as error:
                planned = case.plan().total or 0
                total = torch.cuda.get_device_properties(0).total_memory
                report.check(f"{name}: out of memory where the plan says so", planned > total,
                             f"planned {planned / GIB:.1f} GiB; {str(error)[:120]}")  # fmt: skip
                continue
            report.check(f"{name}: a loss that is a number", turn.loss == turn.loss, turn.loss)
            report.figures[f"{name}: samples/s"] = round(turn.rate, 2)
            _planned(report, name, turn.peak, case.plan().allocated)


def grpo(report: Report) -> None:
    """GRPO's loss phase: log-probabilities, loss, gradients, optimizer, on given completions."""
    case = _grpo_cases.CASES["lora7b"]
    if report.on_gpu:
        case = replace(case, rows=16)
    else:
        case = replace(case, tiny=True, rows=8, micro=4, length=120, picture=(72, 36))
    turn = _grpo_sides.take_turn(case, _grpo_cases.OURS, _vla_sides.WARM + 2)
    report.check("a loss that is a number", turn.loss == turn.loss, turn.loss)
    report.check("gradients", turn.grad_norm > 0, turn.grad_norm)
    report.figures["tokens/s"] = round(turn.rate)
    _planned(report, "loss phase", turn.peak, case.plan().allocated)


def _planned(report: Report, name: str, peak: int, planned: int | None) -> None:
    """Note planned against allocated bytes; at most 8 % off, and never under by more than 3 %."""
    if not report.on_gpu or planned is None:
        return
    off = planned / peak - 1
    found = f"planned {planned / GIB:.2f} GiB, allocated {peak / GIB:.2f}, {off:+.1%}"
    report.check(f"{name}: planned memory", -0.03 <= off <= 0.08, found)
