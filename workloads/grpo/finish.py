"""After the training itself: export, and what it all came to."""

import time
from typing import Any

from trl import GRPOTrainer

from workloads.engine import distributed
from workloads.engine.finish import export_final, forget
from workloads.engine.hub.publish import push_final
from workloads.engine.summary import change, draw_curve, report_next, rows_of, series, show
from workloads.engine.training.trainer import RunTrainer
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared
from workloads.grpo.evaluate import held_out
from workloads.grpo.evaluate.chart import draw_rewards
from workloads.grpo.evaluate.scores import AFTER, BEFORE, BLANK, scores_of
from workloads.grpo.export import export
from workloads.grpo.model import load_for_use
from workloads.grpo.rollouts.engine import stability_ladder
from workloads.grpo.rollouts.rollouts import FILE, FOLDER
from workloads.run import Run
from workloads.run.session import Session

# A reward's mean at the two ends of a run is taken over so many logged steps.
_SPAN = 10
_FALL = 0.02


def finish(config: GrpoConfig, session: Session, trainer: RunTrainer, data: Prepared) -> None:
    """Export the trained model, ask it, and say what got better. All ranks take part."""
    training = _training_facts(config, trainer)
    step = trainer.state.global_step
    if isinstance(trainer, GRPOTrainer):
        trainer.ref_model = trainer._buffered_inputs = None
    forget(trainer)
    if config.export.enabled:
        export_final(session, export)
        _ask_exported(config, session, data, step)
    elif data.held_out:
        session.tell("no rewards after training: the exported model earns them (export.enabled)")
    if session.is_main:
        _tell(config, session, training)
        push_final(config, session)


def _ask_exported(config: GrpoConfig, session: Session, data: Prepared, step: int) -> None:
    """Ask the model in `final/`, on every rank that can see it; once more with grey pictures."""
    if not data.held_out:
        return
    asker = None
    if session.run.final.is_dir():
        precision = config.train.precision
        loaded = load_for_use(str(session.run.final), precision, config.grpo, session.tell)
        asker = held_out.Asker(loaded.model, loaded.processing)
    held_out.measure(config, session, asker, data, AFTER, step)
    if config.evaluation.blank:
        held_out.measure(config, session, asker, data, BLANK, step)


def _training_facts(config: GrpoConfig, trainer: RunTrainer) -> dict[str, str]:
    world = distributed.world_size()
    model: Any = trainer.model
    count = sum(one.numel() for one in model.parameters() if one.requires_grad)
    engine = config.generation.engine if config.stage == "grpo" else "supervised"
    return {
        "trained": f"{config.model.name}, {count:,} parameters, {config.adapter.method}",
        "on": f"{config.data.source}, {len(trainer.train_dataset):,} rows",
        "how": f"{trainer.state.global_step} steps on {world} rank{'s' if world > 1 else ''}, "
        f"{config.strategy(world)}, {config.train.precision}, {engine}",
    }


def _tell(config: GrpoConfig, session: Session, training: dict[str, str]) -> None:
    """The summary that a run ends with."""
    run = session.run
    facts = list(training.items())
    facts += reward_changes(rows_of(run), config)
    facts += held_out_changes(config, run)
    curve = draw_rewards(run, config) if config.stage == "grpo" else draw_curve(run)
    facts.append(("run", f"{run.path}/"))
    if (run.path / FOLDER / FILE).is_file():
        facts.append(("completions", f"{run.path / FOLDER / FILE}"))
    if run.final.is_dir():
        facts.append(("model", f"{run.final}/  (transformers loads it)"))
    if curve:
        facts.append(("curve", str(curve)))
    facts.append(report_next(run))
    show(f"{config.name}: done at {time.strftime('%H:%M:%S')}", facts, session.console)


def reward_changes(rows: list[dict[str, Any]], config: GrpoConfig) -> list[tuple[str, str]]:
    """Each reward's mean over the first and the last logged steps; advice where the sum fell."""
    if config.stage != "grpo":
        return []
    names = {f"rewards/{one.name}/mean": one.name for one in config.rewards.functions} | {
        "reward": "sum"
    }
    facts, fell = [], False
    for key, label in names.items():
        _, values = series(rows, key)
        if not values:
            continue
        span = min(_SPAN, len(values) // 2 or 1)
        first, last = sum(values[:span]) / span, sum(values[-span:]) / span
        facts.append((f"reward {label}", change(first, last)))
        fell = fell or (label == "sum" and span == _SPAN and last < first - _FALL)
    if fell and (steps := stability_ladder(config)):
        facts.append(("it fell; try", ", ".join(steps)))
    return facts


def held_out_changes(config: GrpoConfig, run: Run) -> list[tuple[str, str]]:
    """Each reward's mean on held-out rows before and after; of the first, what else would earn."""
    before, after = (scores_of(run, when) for when in (BEFORE, AFTER))
    names = [
        one.name for one in config.rewards.functions if one.name in before or one.name in after
    ]
    facts = []
    for place, name in enumerate(names):
        value = change(before.get(name), after.get(name))
        if place == 0:
            known = after or before
            value += f"  (always {known['commonest_text']}: {known['commonest_answer']:.3g})"
        facts.append((f"held-out {name}", value))
    if names and (blank := scores_of(run, BLANK)):
        facts.append(("  with grey pictures", f"{blank[names[0]]:.3g}"))
    return facts
