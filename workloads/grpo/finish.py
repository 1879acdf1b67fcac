"""After training: evaluation, export, summary."""

from typing import Any

from trl import GRPOTrainer

from workloads.engine import distributed
from workloads.engine import finish as engine_finish
from workloads.engine.summary import change, course, draw_curve, rows_of, series
from workloads.engine.training.trainer import RunTrainer
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared
from workloads.grpo.evaluate import held_out
from workloads.grpo.evaluate.chart import draw_rewards
from workloads.grpo.evaluate.scores import AFTER, BEFORE, BLANK, logged_rewards, scores_of
from workloads.grpo.export import EXPORTER
from workloads.grpo.model import load_for_use
from workloads.grpo.rollouts.engine import stability_ladder
from workloads.grpo.rollouts.rollouts import FILE, FOLDER
from workloads.run import Run
from workloads.run.directory import rows_in
from workloads.run.events import Event
from workloads.run.session import Session

# Logged steps for a reward's mean at the start and at the end of a run.
_SPAN = 10
_FALL = 0.02


def finish(config: GrpoConfig, session: Session, trainer: RunTrainer, data: Prepared) -> None:
    """Export the trained model, evaluate it, and summarise what got better. All ranks take part."""
    run, step = session.run, trainer.state.global_step
    rows = f"{config.data.source}, {len(trainer.train_dataset):,} rows"
    engine = config.generation.engine if config.stage == "grpo" else "supervised"
    facts = engine_finish.training_facts(trainer, rows, engine=engine)
    if isinstance(trainer, GRPOTrainer):
        trainer.ref_model = trainer._buffered_inputs = None
    rewarded = config.stage == "grpo"
    engine_finish.finish(
        session,
        trainer,
        EXPORTER,
        facts,
        results=lambda: _results(run, config),
        evaluate=(lambda: _ask_exported(config, session, data, step)) if data.held_out else None,
        draw=draw_rewards if rewarded else draw_curve,
    )


def _ask_exported(config: GrpoConfig, session: Session, data: Prepared, step: int) -> None:
    """Evaluate the model in `final/` on every rank that can read it; once more with grey images."""

    def load() -> held_out.Asker | None:
        if not session.run.final.is_dir():
            return None
        precision = config.train.precision
        loaded = load_for_use(str(session.run.final), precision, config.grpo, session.report)
        return held_out.Asker(loaded.model, loaded.processing)

    asker = distributed.together(load, "evaluation")
    held_out.measure(config, session, asker, data, AFTER, step)
    if config.evaluation.blank:
        held_out.measure(config, session, asker, data, BLANK, step)


def _results(run: Run, config: GrpoConfig) -> engine_finish.Facts:
    facts = reward_changes(rows_of(run), config) + held_out_changes(config, run)
    facts += [
        ("may not learn", f"step {row['step']}: {row['seen']}; {row['change']}")
        for row in rows_in(run.events)
        if row.get("event") == Event.NO_SIGNAL
    ]
    if (run.path / FOLDER / FILE).is_file():
        facts.append(("completions", f"{run.path / FOLDER / FILE}"))
    return facts


def reward_changes(rows: list[dict[str, Any]], config: GrpoConfig) -> list[tuple[str, str]]:
    """Each reward's mean over the first and the last logged steps; advice where the sum fell."""
    if config.stage != "grpo":
        return []
    names = {f"rewards/{name}/mean": name for name in logged_rewards(rows)} | {"reward": "sum"}
    facts, fell = [], False
    for key, label in names.items():
        _, values = series(rows, key)
        if not values:
            continue
        span = min(_SPAN, len(values) // 2 or 1)
        first, last = sum(values[:span]) / span, sum(values[-span:]) / span
        facts.append((f"reward {label}", course([first, last] if len(values) > 1 else values)))
        fell = fell or (label == "sum" and span == _SPAN and last < first - _FALL)
    if fell and (steps := stability_ladder(config)):
        facts.append(("it fell; try", ", ".join(steps)))
    return facts


def held_out_changes(config: GrpoConfig, run: Run) -> list[tuple[str, str]]:
    """Each reward's mean on held-out rows before and after; for the first one, with baselines."""
    before, after = (scores_of(run, when) for when in (BEFORE, AFTER))
    names = [
        function.name
        for function in config.rewards.functions
        if function.name in before or function.name in after
    ]
    facts = []
    for place, name in enumerate(names):
        value = change(before.get(name), after.get(name))
        if place == 0:
            known = after or before
            value += f"  (always {known['commonest_text']}: {known['commonest_answer']:.3g})"
        facts.append((f"held-out {name}", value))
    if names and (blank := scores_of(run, BLANK)):
        facts.append(("  with grey images", f"{blank[names[0]]:.3g}"))
    return facts
