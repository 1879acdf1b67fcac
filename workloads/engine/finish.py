"""What every workload does after its last step: export on rank 0, and the memory given back."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from workloads.engine import distributed
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import TataraError
from workloads.run.events import Event, Phase
from workloads.run.session import Session


def export_final(session: Session, export: Callable[..., Any]) -> None:
    """Have rank 0 write `final/`; a failure there ends all ranks.

    export: a workload's own, called with the run and `tell`.
    """
    problem: TataraError | None = None
    with session.phase(Phase.EXPORTING):
        if session.is_main:
            try:
                export(session.run, tell=session.tell)
                session.event(Event.EXPORTED, path=str(session.run.final))
            except TataraError as error:
                problem = error
        distributed.all_or_none(problem, "export")


def forget(trainer: RunTrainer) -> None:
    """Give the training's memory back before a model is loaded again."""
    trainer.accelerator.free_memory()
    # Else a model that one rank makes from here on waits for the others, as ZeRO-3 has it.
    unset_hf_deepspeed_config()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
