"""Translates our config into the arguments of every transformers Trainer."""

from typing import Any

import torch
from transformers.utils import is_torch_tf32_available

from workloads.config.sections import Profile
from workloads.engine import distributed
from workloads.engine.training.out_of_memory import micro_batch
from workloads.engine.training.workers import WorkerContext
from workloads.run.session import Session

_NEVER = 10**9
OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}


def trainer_arguments(config: Profile, session: Session, eval_steps: int | None) -> dict[str, Any]:
    """Keyword arguments of TrainingArguments and its descendants; all ranks call it together."""
    train, optim = config.train, config.optim
    world = distributed.world_size()
    gpu = torch.cuda.is_available()
    strategy = config.strategy(world)
    size, micro_batches = micro_batch(config, session)
    arguments: dict[str, Any] = {
        "output_dir": str(session.run.checkpoints),
        "num_train_epochs": train.epochs,
        "max_steps": train.max_steps or -1,
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": size,
        "gradient_accumulation_steps": micro_batches,
        "learning_rate": optim.learning_rate,
        "lr_scheduler_type": _schedule(optim),
        "warmup_steps": optim.warmup_steps,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "adam_epsilon": optim.epsilon,
        "max_grad_norm": optim.max_grad_norm,
        "optim": OPTIMIZERS[optim.optimizer],
        "bf16": train.precision == "bf16",
        "fp16": train.precision == "fp16",
        "tf32": train.precision == "fp32" and is_torch_tf32_available() or None,
        "use_cpu": not gpu,
        "gradient_checkpointing": train.gradient_checkpointing,
        "torch_compile": train.compile,
        "seed": train.seed,
        "data_seed": train.seed,
        "dataloader_num_workers": train.workers,
        # Persistent workers draw their seed once a process, not once an epoch: after a resume the
        # random state would be one draw ahead.
        "dataloader_persistent_workers": False,
        "dataloader_multiprocessing_context": WorkerContext() if train.workers else None,
        "dataloader_pin_memory": gpu,
        "remove_unused_columns": False,
        "logging_steps": train.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        # No metric_for_best_model: with one the Trainer waits for all ranks in a save, and a rank
        # whose disk is full never comes. RunTrainer.best_step finds the best one.
        "save_strategy": "steps",
        "save_steps": config.checkpoints.every_steps or _NEVER,
        "save_total_limit": None,
        "eval_strategy": "steps" if eval_steps else "no",
        "eval_steps": eval_steps,
        "prediction_loss_only": True,
        "disable_tqdm": True,
        "report_to": [],
        "ddp_find_unused_parameters": False,
        "ddp_timeout": int(max(1800.0, 4 * config.parallel.hang_timeout)),
    }
    if strategy == "fsdp2":
        arguments["fsdp"] = True
        arguments["fsdp_config"] = {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "SHARDED_STATE_DICT",
            "reshard_after_forward": not config.keeps_gathered,
        }
    if strategy in ("zero2", "zero3"):
        arguments["deepspeed"] = _deepspeed(config, 2 if strategy == "zero2" else 3)
    return arguments


def _schedule(optim: Any) -> str:
    """transformers' name; the schedule by epochs, which it lacks, comes from RunTrainer."""
    if optim.schedule == "constant":
        return "constant_with_warmup" if optim.warmup_steps else "constant"
    return "constant" if optim.schedule == "cosine_epochs" else str(optim.schedule)


def _deepspeed(config: Profile, stage: int) -> dict[str, Any]:
    """ZeRO with the optimizer on the host; `auto` takes the Trainer's own values."""
    return {
        "zero_optimization": {
            "stage": stage,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "overlap_comm": True,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
            **config.parallel.zero,
        },
        # DeepSpeed applies steps itself: without this check also one with a NaN.
        "bf16": {"enabled": "auto", "check_grad_overflow": True},
        "fp16": {"enabled": "auto", "loss_scale": 0},  # 0: dynamic
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": config.optim.max_grad_norm,
    }
