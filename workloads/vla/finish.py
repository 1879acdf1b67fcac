"""After training: evaluation on held-out episodes, export, summary."""

import json

from workloads.engine import distributed
from workloads.engine import finish as engine_finish
from workloads.engine.summary import course, rows_of, series
from workloads.engine.training.trainer import RunTrainer
from workloads.run import Run
from workloads.run.events import Event
from workloads.run.session import Session
from workloads.vla.config import VlaConfig
from workloads.vla.family import family_of
from workloads.vla.reach.finishing import judge_exported

SCORES = "held_out.json"
_LOOKS = (
    ("eval_loss", "held-out loss", "{:.3g}"),
    ("eval_action_accuracy", "held-out action accuracy", "{:.1%}"),
    ("eval_gripper_accuracy", "held-out gripper accuracy", "{:.1%}"),
    ("eval_l1", "held-out L1 (normalised)", "{:.3g}"),
)


def finish(config: VlaConfig, session: Session, trainer: RunTrainer) -> None:
    """Evaluate on held-out episodes, export, and summarise what got better. All ranks take part."""
    _last_look(session, trainer)
    family = family_of(config)
    sources = ", ".join(source.source for source in config.data.sources())
    steps = f"{sources}, {len(trainer.train_dataset):,} steps an epoch"
    done: engine_finish.Facts = []

    def judge() -> None:
        """Evaluate the exported policy on its task, on rank 0."""
        task = config.evaluation
        found = distributed.together(
            lambda: (
                judge_exported(session, str(task.task), task.scenes, task.seed)
                if session.is_main
                else []
            ),
            "evaluation",
        )
        done.extend(found)

    engine_finish.finish(
        session,
        trainer,
        family.exporter,
        engine_finish.training_facts(trainer, steps, method=family.method(config)),
        results=lambda: _changes(session.run) + done,
        evaluate=judge if config.evaluation.task else None,
    )


def _last_look(session: Session, trainer: RunTrainer) -> None:
    """Evaluate the trained model on held-out episodes and write the run's evaluation."""
    if trainer.eval_dataset is None:
        return
    history = trainer.state.log_history
    looks = [row for row in history if "eval_loss" in row]
    if not looks or looks[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
        looks = [row for row in trainer.state.log_history if "eval_loss" in row]
    if session.is_main:
        names = ("loss", "loss_arm", "loss_gripper", "gripper_accuracy", "action_accuracy", "l1")
        last = {name.removeprefix("eval_"): value for name, value in looks[-1].items()}
        facts = {name: last[name] for name in names if name in last}
        errors = [last[f"error_{at}"] for at in range(len(last)) if f"error_{at}" in last]
        facts |= {"step": last["step"], "samples": len(trainer.eval_dataset), "error": errors}
        text = json.dumps(facts, indent=1) + "\n"
        (session.run.evaluation / SCORES).write_text(text, encoding="utf-8")
        session.event(Event.EVALUATED, when="after", **facts)


def _changes(run: Run) -> engine_finish.Facts:
    facts, rows = [], rows_of(run)
    for name, label, form in _LOOKS:
        _, values = series(rows, name)
        if values:
            facts.append((label, course(values, form)))
    return facts
