"""Find mistakes before any GPU time is spent: quick checks here, every row with `--deep`.

A workload adds its own checks in `workloads/<workload>/check.py`: `shallow(config, env)` and
`deep(config, env)` return findings.
"""

import importlib
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from workloads import device
from workloads import run as runs
from workloads.config.sections import Adapter, Profile
from workloads.device import GIB, MIB
from workloads.environment import without_secrets
from workloads.errors import UserError
from workloads.findings import Finding, Level
from workloads.host.folders import existing, how_to_write
from workloads.missing_files import FIX, lost_link, texts
from workloads.plan.advice import advice
from workloads.plan.estimate import MAY_FIT, estimate

if TYPE_CHECKING:
    from workloads.launch.supervisor import Job

_MIN_FREE = GIB


def shallow(
    config: Profile, env: Mapping[str, str], provenance: Mapping[str, str] | None = None
) -> list[Finding]:
    """Checks that take well under a second and load no library.

    provenance: where each value came from, as `resolve` gives it.
    """
    findings = [
        _outputs(env),
        _precision(config),
        _compute(config, env),
        _batch(config, env),
        _options(config),
        _adapter(config, provenance or {}),
        *_lost_links(config),
    ]
    found = [finding for finding in findings if finding] + list(
        _of_workload(config, "shallow", env)
    )
    if any(item.level == "error" for item in found):
        return found
    return found + _plan(config, env)


def deep(config: Profile, env: Mapping[str, str]) -> list[Finding]:
    """Read every row and count its tokens."""
    return list(_of_workload(config, "deep", env))


def _of_workload(config: Profile, name: str, env: Mapping[str, str]) -> list[Finding]:
    module = f"workloads.{config.workload}.check"
    if importlib.util.find_spec(module) is None:
        return []
    found: list[Finding] = getattr(importlib.import_module(module), name)(config, env)
    return found


def _lost_links(config: Profile) -> list[Finding]:
    """Settings whose path leads through a broken link, as a link out of a container does."""
    found = [(name, lost) for name, text in texts(config.model_dump()) if (lost := lost_link(text))]
    return [Finding(name, "error", lost, FIX) for name, lost in found]


def _outputs(env: Mapping[str, str]) -> Finding:
    folder = runs.outputs(dict(env))
    here = existing(folder)
    if not os.access(here, os.W_OK):
        return Finding(
            "outputs",
            "error",
            f"{here} is not writable by you",
            how_to_write([here], os.getuid(), os.getgid()),
        )
    free = shutil.disk_usage(here).free
    if free < _MIN_FREE:
        return Finding(
            "outputs", "error", f"{free / MIB:.0f} MiB free in {here}", "free at least 1 GiB"
        )
    return Finding("outputs", "ok", f"{folder}, {free / GIB:.0f} GiB free")


def _precision(config: Profile) -> Finding | None:
    """1e-6 steps vanish in bf16: near 1 its numbers are 0.4 % apart."""
    train = config.train
    low = train.precision == "bf16" and train.master_weights == "compute"
    if low and config.adapter.method == "full" and config.optim.learning_rate < 1e-4:
        return Finding(
            "precision",
            "warning",
            f"a learning rate of {config.optim.learning_rate:g} rounds away in bf16 weights",
            "set train.master_weights=fp32",
        )
    return None


def _compute(config: Profile, env: Mapping[str, str]) -> Finding | None:
    """fp16 needs a GPU for its loss scaling; bf16 one that has it; a name has to be of one here."""
    gpus = device.gpus(env)
    wanted = env.get("CUDA_VISIBLE_DEVICES", "")
    if not gpus and wanted not in ("", "-1") and (hidden := device.gpus({})):
        found = f"CUDA_VISIBLE_DEVICES={wanted} names none of the {len(hidden)} GPUs here"
        return Finding("compute", "error", found, "unset it, or leave it empty for the CPU")
    precision = config.train.precision
    if precision == "fp16" and not gpus:
        found = "train.precision=fp16 needs a GPU, and none is here"
        return Finding("compute", "error", found, "set train.precision=bf16 or fp32")
    old = [gpu.name for gpu in gpus if not gpu.has_bf16]
    if precision == "bf16" and old:
        return Finding("compute", "error", f"{old[0]} has no bf16", "set train.precision=fp16")
    return None


def _batch(config: Profile, env: Mapping[str, str]) -> Finding | None:
    """Ranks against the GPUs of a node, and the global batch against the ranks."""
    here = _gpus_of_a_node(config, env)
    if here and config.ranks_per_node(here) > here:
        found = f"{config.ranks_per_node(here)} ranks a node for {here} GPU a node"
        return Finding("ranks", "error", found, "set parallel.ranks_per_node=auto")
    try:
        config.accumulation_steps(world_size(config, env))
    except UserError as error:
        return Finding("batch", "error", str(error))
    return None


def _gpus_of_a_node(config: Profile, env: Mapping[str, str]) -> int:
    """GPUs of each node; without NODE_RANK all nodes share this machine's."""
    gpus = device.gpu_count(env)
    return gpus if env.get("NODE_RANK") else gpus // config.parallel.nodes


def world_size(config: Profile, env: Mapping[str, str]) -> int:
    """Ranks of all nodes, as far as the GPUs here tell."""
    return config.parallel.nodes * config.ranks_per_node(_gpus_of_a_node(config, env))


def _options(config: Profile) -> Finding | None:
    """Settings that need an optional package."""
    wanted = {
        "bitsandbytes": config.adapter.method == "qlora" or config.optim.optimizer == "adamw_8bit",
        "deepspeed": config.parallel.strategy in ("zero2", "zero3"),
    }
    missing = [name for name, on in wanted.items() if on and not importlib.util.find_spec(name)]
    if missing:
        # No image has DeepSpeed, which compiles its parts where it runs.
        other = "set parallel.strategy=fsdp2" if "deepspeed" in missing else "use the image"
        return Finding(
            "packages",
            "error",
            f"this profile needs {', '.join(missing)}, which is not installed here",
            f"pip install {' '.join(missing)}, or {other}",
        )
    return None


def _adapter(config: Profile, provenance: Mapping[str, str]) -> Finding | None:
    """Settings of an adapter, such as LORA_RANK in `.env`, where none is trained."""
    default: Adapter = type(config).model_fields["adapter"].default
    if config.adapter.method != "full":
        return None
    usual = default.model_dump()
    given = [
        name
        for name, value in config.adapter
        if name != "method" and value != usual[name]
        if name == "resume_from" or not _is_left_behind(name, provenance)
    ]
    if not given:
        return None
    names = ", ".join(f"adapter.{name}" for name in given)
    level: Level = "error" if config.adapter.resume_from else "warning"
    found = f"{names} set, but adapter.method=full trains all weights"
    return Finding("adapter", level, found, "set adapter.method=lora or qlora, or leave them out")


def _is_left_behind(setting: str, provenance: Mapping[str, str]) -> bool:
    """Whether an adapter's setting comes from a profile whose method a later source replaced."""
    own, method = (provenance.get(f"adapter.{name}", "default") for name in (setting, "method"))
    file, *place = own.rsplit(":", 2)
    of_a_profile = len(place) == 2 and all(number.isdecimal() for number in place)
    return of_a_profile and method != "default" and method.rsplit(":", 2)[0] != file


def _plan(config: Profile, env: Mapping[str, str]) -> list[Finding]:
    """Compare the plan with the GPUs and the disk of this machine."""
    gpus = device.gpus(env)
    breakdown = estimate(config, len(gpus) or None, env)
    if breakdown.total is None:
        return [Finding("memory", "warning", f"not planned: {breakdown.unknown}")]
    findings = []
    if gpus:
        size = min(gpu.total for gpu in gpus)
        planned = breakdown.need(size) or 0
        need = f"{planned / GIB:.1f} GiB planned, {size / GIB:.1f} GiB in the GPU"
        over = planned / size
        level: Level = "ok" if over <= 1 else "warning" if over <= MAY_FIT else "error"
        fixes = [] if over <= 1 else advice(breakdown, config, size)
        findings.append(Finding("memory", level, need, "; ".join(fixes)))
    free = shutil.disk_usage(existing(runs.outputs(dict(env)))).free
    text = f"{breakdown.disk / GIB:.1f} GiB planned, {free / GIB:.1f} GiB free"
    short = breakdown.disk > free
    fix = "free some, or set checkpoints.keep_last=1" if short else ""
    return [*findings, Finding("disk", "error" if short else "ok", text, fix)]


def before_start(job: "Job") -> None:
    """The shallow checks before a run; raises UserError with all errors at once."""
    findings = shallow(job.config, job.env, job.provenance)
    for finding in findings:
        if finding.level == "warning":
            print(without_secrets(f"tatara: {finding.line()}", os.environ), file=sys.stderr)
    errors = [finding.line() for finding in findings if finding.level == "error"]
    if errors:
        raise UserError("this profile cannot start:\n  " + "\n  ".join(errors))
    address = job.env.get("MASTER_ADDR")
    if address and job.nodes > 1 and not job.is_local:
        _resolvable(address)


def _resolvable(address: str) -> None:
    """A name that does not resolve yet may do so once its container is up: warn only."""
    try:
        socket.getaddrinfo(address, None)
    except OSError:
        print(f"tatara: MASTER_ADDR {address!r} does not resolve yet", file=sys.stderr)
