"""A DeepSpeed file (`--deepspeed FILE`) as settings: each field is mapped, or refused by its name.

No field is left out in silence: it sets something, or says what is done here anyway, or ends the
start with the reason.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from workloads.config.sections import ZeroField
from workloads.errors import UserError, did_you_mean
from workloads.json_files import read_json

_SETTINGS = {
    "train_micro_batch_size_per_gpu": "train.per_device_batch_size",
    "train_batch_size": "train.global_batch_size",
    "gradient_clipping": "optim.max_grad_norm",
    "optimizer.params.lr": "optim.learning_rate",
    "optimizer.params.eps": "optim.epsilon",
    "optimizer.params.weight_decay": "optim.weight_decay",
}
_ZERO = {f"zero_optimization.{name}": f"parallel.zero.{name}" for name in get_args(ZeroField)}
_STAGES = {2: "zero2", 3: "zero3"}
# What is always so here, and for a file that has it otherwise, why.
_ON_HOST = (
    "ZeRO keeps the optimizer on the host here; parallel.strategy=fsdp2 in place of the file "
    "shards it over the GPUs"
)
_DYNAMIC = "fp16 scales the loss as DeepSpeed does by default"
_PRINTED = "DeepSpeed prints nothing here; tatara monitor shows speed and memory"
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "zero_optimization.offload_optimizer.device": (("cpu",), _ON_HOST),
    "zero_optimization.offload_optimizer.pin_memory": ((True,), "its memory is pinned here"),
    "zero_optimization.offload_param.device": (("none",), "weights stay on the GPUs here"),
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": (
        (True,),
        "the model could not be exported",
    ),
    "bf16.check_grad_overflow": ((True,), "a step with a NaN would be applied"),
    "fp16.loss_scale": ((0,), _DYNAMIC),
    "fp16.loss_scale_window": ((1000,), _DYNAMIC),
    "fp16.initial_scale_power": ((16,), _DYNAMIC),
    "fp16.hysteresis": ((2,), _DYNAMIC),
    "fp16.min_loss_scale": ((1,), _DYNAMIC),
    "fp16.consecutive_hysteresis": ((False,), _DYNAMIC),
    "fp16.auto_cast": ((False,), _DYNAMIC),
    "optimizer.type": (("AdamW", "Adam"), "the optimizer is AdamW here"),
    "optimizer.params.adam_w_mode": ((True,), "weight decay is decoupled here"),
    "optimizer.params.torch_adam": ((False,), "on the host DeepSpeed's own Adam steps"),
    "optimizer.params.bias_correction": ((True,), "AdamW corrects its bias here"),
    "zero_force_ds_cpu_optimizer": ((True,), "on the host DeepSpeed's own Adam steps"),
    "wall_clock_breakdown": ((False,), _PRINTED),
    "dump_state": ((False,), _PRINTED),
    "prescale_gradients": ((False,), "gradients are averaged as DeepSpeed does by default"),
    "gradient_predivide_factor": ((1,), "gradients are averaged as DeepSpeed does by default"),
}
_REFUSED = {
    "scheduler": "write optim.schedule=… and optim.warmup_steps=…",
    "amp": "write train.precision=bf16 or fp16",
    "tensorboard": "write tracking.tensorboard=true",
    "wandb": "write tracking.wandb=online",
    "csv_monitor": "`tatara report RUN --csv` writes the figures of any run",
    "activation_checkpointing": "write train.gradient_checkpointing=true",
    "flops_profiler": "tatara monitor shows speed and utilisation",
}
# Change nothing here, whatever they say: no parameter leaves the GPU, AdamW is a tested optimizer,
# and transformers' Trainer keeps DeepSpeed from printing.
_NO_EFFECT = (
    "zero_optimization.offload_param.pin_memory",
    "zero_allow_untested_optimizer",
    "steps_per_print",
)
_READ_APART = (
    "zero_optimization.stage",
    "bf16.enabled",
    "fp16.enabled",
    "optimizer.params.betas",
    "gradient_accumulation_steps",
)


def settings_of(file: Path) -> dict[str, Any]:
    """Dotted settings that a DeepSpeed file stands for; `auto` leaves a setting as it is.

    Raises UserError that names every field which cannot be followed, with the reason.
    """
    fields = _flat(read_json(file))
    problems = []
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _SETTINGS:
            if value != "auto":
                found[_SETTINGS[name]] = value
        elif name in _ZERO:
            found[_ZERO[name]] = value
        elif name in _FIXED:
            allowed, why = _FIXED[name]
            if value != "auto" and value not in allowed:
                wanted = " or ".join(repr(each) for each in allowed)
                problems.append(f"{name}: expected {wanted}, found {value!r}: {why}")
        elif name not in (*_READ_APART, *_NO_EFFECT):
            problems.append(f"{name}: not taken: {_why_not(name)}; take it out")
    for part in (_strategy, _precision, _betas, _accumulation):
        try:
            found |= part(fields)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(f"--deepspeed {file}: {problem}" for problem in problems))
    return found


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted field → value. Fields that are refused whole, and empty groups, stay in one piece."""
    fields: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name not in _REFUSED:
            fields |= _flat(value, f"{name}.")
        elif value != {}:
            fields[name] = value
    return fields


def _why_not(name: str) -> str:
    if name in _REFUSED:
        return _REFUSED[name]
    known = [*_SETTINGS, *_ZERO, *_FIXED, *_READ_APART, *_NO_EFFECT]
    return f"nothing here answers to it; {did_you_mean(name, known)}"


def _strategy(fields: Mapping[str, Any]) -> dict[str, Any]:
    stage = fields.get("zero_optimization.stage", 0)
    if stage not in _STAGES:
        raise UserError(
            f"zero_optimization.stage: expected 2 or 3, found {stage!r}; write "
            "parallel.strategy=ddp, or fsdp2, in place of the file"
        )
    if "zero_optimization.offload_optimizer.device" not in fields:
        raise UserError(
            f"zero_optimization.offload_optimizer.device: expected 'cpu', found none: {_ON_HOST}"
        )
    return {"parallel.strategy": _STAGES[stage]}


def _precision(fields: Mapping[str, Any]) -> dict[str, Any]:
    asked = {kind: fields.get(f"{kind}.enabled") for kind in ("bf16", "fp16")}
    chosen = [kind for kind, wanted in asked.items() if wanted is True]
    if len(chosen) == 2:
        raise UserError("bf16.enabled, fp16.enabled: expected one of them, found both")
    if chosen:
        return {"train.precision": chosen[0]}
    if "auto" in asked.values() or set(asked.values()) == {None}:
        return {}
    return {"train.precision": "fp32"}


def _betas(fields: Mapping[str, Any]) -> dict[str, Any]:
    betas = fields.get("optimizer.params.betas", "auto")
    if betas == "auto":
        return {}
    if not isinstance(betas, list) or len(betas) != 2:
        raise UserError(f"optimizer.params.betas: expected two numbers, found {betas!r}")
    return {"optim.beta1": betas[0], "optim.beta2": betas[1]}


def _accumulation(fields: Mapping[str, Any]) -> dict[str, Any]:
    steps = fields.get("gradient_accumulation_steps", "auto")
    micro, whole = (
        fields.get(name, "auto") for name in ("train_micro_batch_size_per_gpu", "train_batch_size")
    )
    if steps == "auto" or (
        isinstance(micro, int) and isinstance(whole, int) and whole % (micro * steps) == 0
    ):
        return {}
    raise UserError(
        f"gradient_accumulation_steps: found {steps!r}; it follows from train_batch_size and "
        "train_micro_batch_size_per_gpu here: give both, in numbers that agree with it, or auto"
    )
