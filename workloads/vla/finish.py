"""After the training itself: held-out episodes, export, and what it all came to."""

import json
import time

from workloads.engine import distributed
from workloads.engine.finish import export_final, forget
from workloads.engine.hub.publish import push_final
from workloads.engine.summary import change, draw_curve, report_next, rows_of, series, show
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import TataraError
from workloads.run.events import Event, Phase
from workloads.run.session import Session
from workloads.vla.config import VlaConfig
from workloads.vla.export import export
from workloads.vla.reach.finishing import judge_exported

SCORES = "held_out.json"


def finish(config: VlaConfig, session: Session, trainer: RunTrainer) -> None:
    """Look at the held-out episodes, export, and say what got better. All ranks take part."""
    training = _training_facts(config, trainer)
    _last_look(session, trainer)
    forget(trainer)
    if config.export.enabled:
        export_final(session, export)
    done = _do_task(config, session) if config.evaluation.task else []
    if session.is_main:
        _tell(config, session, training, done)
        push_final(config, session)


def _last_look(session: Session, trainer: RunTrainer) -> None:
    """Errors of the trained model on held-out episodes, kept as the run's evaluation."""
    if trainer.eval_dataset is None:
        return
    history = trainer.state.log_history
    looks = [row for row in history if "eval_loss" in row]
    if not looks or looks[-1]["step"] != trainer.state.global_step:
        trainer.evaluate()
        looks = [row for row in trainer.state.log_history if "eval_loss" in row]
    if session.is_main:
        names = ("loss", "action_accuracy", "l1")
        last = {name.removeprefix("eval_"): value for name, value in looks[-1].items()}
        facts = {name: last[name] for name in names if name in last}
        errors = [last[f"error_{at}"] for at in range(len(last)) if f"error_{at}" in last]
        facts |= {"step": last["step"], "samples": len(trainer.eval_dataset), "error": errors}
        text = json.dumps(facts, indent=1) + "\n"
        (session.run.evaluation / SCORES).write_text(text, encoding="utf-8")
        session.event(Event.EVALUATED, when="after", **facts)


def _do_task(config: VlaConfig, session: Session) -> list[tuple[str, str]]:
    """Rank 0 lets the exported policy do its task; gives back what there is to say of it."""
    facts: list[tuple[str, str]] = []
    problem: TataraError | None = None
    with session.phase(Phase.EVALUATING):
        if session.is_main:
            try:
                facts = judge_exported(session, config.evaluation.scenes, config.evaluation.seed)
            except TataraError as error:
                problem = error
        distributed.all_or_none(problem, "evaluation")
    return facts


def _training_facts(config: VlaConfig, trainer: RunTrainer) -> dict[str, str]:
    world, nodes = distributed.world_size(), config.parallel.nodes
    count = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
    head = config.action_head
    chunk = f"{head.chunk} step" + ("s" if head.chunk > 1 else "")
    how = "action tokens" if head.kind == "tokens" else f"OFT {head.decode}, {chunk}"
    where = f"{nodes} x {world // nodes} rank" + ("s" if world > nodes else "")
    return {
        "trained": f"{config.model.name}, {count:,} parameters, {config.adapter.method}, {how}",
        "on": f"{', '.join(one.source for one in config.data.sources())}, "
        f"{len(trainer.train_dataset):,} steps an epoch",
        "how": f"{trainer.state.global_step} steps on {where}, {config.strategy(world)}, "
        f"{config.train.precision}, {trainer.args.device.type}",
    }


_LOOKS = (
    ("eval_loss", "held-out loss", "{:.3g}"),
    ("eval_action_accuracy", "held-out action accuracy", "{:.1%}"),
    ("eval_l1", "held-out L1 (normalised)", "{:.3g}"),
)


def _tell(
    config: VlaConfig, session: Session, training: dict[str, str], done: list[tuple[str, str]]
) -> None:
    """The summary that a run ends with."""
    run, rows = session.run, rows_of(session.run)
    facts = list(training.items())
    for name, label, form in _LOOKS:
        _, values = series(rows, name)
        if values:
            before = values[0] if len(values) > 1 else None
            facts.append((label, change(before, values[-1], form)))
    facts += done
    curve = draw_curve(run)
    facts.append(("run", f"{run.path}/"))
    if run.final.is_dir():
        facts.append(("model", f"{run.final}/"))
    if curve:
        facts.append(("curve", str(curve)))
    facts.append(report_next(run))
    show(f"{config.name}: done at {time.strftime('%H:%M:%S')}", facts, session.console)
