"""After the last step of every workload: export, push, evaluate, curve, summary."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from workloads.engine import distributed
from workloads.engine.export.exporter import Exporter
from workloads.engine.hub.publish import push_card, push_final
from workloads.engine.summary import draw_curve
from workloads.engine.training.trackers import Trackers
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import Stopped, TataraError
from workloads.processes import own_command
from workloads.run import Run
from workloads.run.events import Event, Phase
from workloads.run.session import Session

Facts = list[tuple[str, str]]


def finish(
    session: Session,
    trainer: RunTrainer,
    exporter: Exporter[Any],
    facts: Facts,
    results: Callable[[], Facts],
    evaluate: Callable[[], None] | None = None,
    draw: Callable[[Run], Path | None] = draw_curve,
) -> None:
    """Export and push the trained model, evaluate it, and summarise what got better.

    All ranks take part. facts: of the training; results: what got better, read from the run's
    files, on rank 0; evaluate: scores the exported model, on all ranks together; None without a
    task. The model is safe first: trouble with an evaluation is reported
    and ends nothing, a push that fails ends the run with an error once all else is done.
    """
    config, run = trainer.profile, session.run
    try:
        forget(trainer)
        not_pushed: TataraError | None = None
        if config.export.enabled:
            export_final(session, exporter)
            not_pushed = push_final(config, session)
        trouble: Facts = []
        if evaluate is not None and config.export.enabled:
            trouble = _evaluate(session, evaluate)
            if session.is_main:
                exporter.refresh_card(run)
                if not not_pushed:
                    push_card(config, session)
        elif evaluate is not None:
            session.report(
                "no evaluation after training: it needs the exported model (export.enabled)"
            )
        if session.is_main:
            lines = [*facts, *results(), *trouble, ("run", f"{run.path}/")]
            if run.final.is_dir():
                lines.append(("model", f"{run.final}/"))
            if curve := draw(run):
                lines.append(("curve", str(curve)))
            lines.append(("next", own_command("report", str(run.path))))
            show(f"{config.name}: done at {time.strftime('%H:%M:%S')}", lines, session.console)
            if config.tracking.keeps_artifacts:
                hand_over_report(session, trainer.watch.trackers)
    finally:
        trainer.watch.trackers.close()
    distributed.all_or_none(not_pushed, "push")


def hand_over_report(session: Session, trackers: Trackers) -> None:
    """Write the run's report, give it and the run's images to the trackers.

    The report is made by its own command, as the monitor reads only a run's files; a failure of it
    is reported and ends nothing.
    """
    folder = session.run.path
    command = [sys.executable, "-m", "workloads.cli", "report", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        session.report(f"no report for Weights & Biases: {made.stderr.strip()}")
    report = folder / "report.html"
    images = [*sorted(folder.glob("*.png")), *sorted(session.run.evaluation.rglob("*.png"))]
    trackers.keep(folder, [*([report] if report.is_file() else []), *images])


def training_facts(trainer: RunTrainer, data: str, method: str = "", engine: str = "") -> Facts:
    """Facts of a training: the first lines of every summary.

    data: the rows, as text; method and engine: a workload's additions to these lines.
    """
    config, world = trainer.profile, distributed.world_size()
    nodes = config.parallel.nodes
    model: Any = trainer.model
    count = sum(value.numel() for value in model.parameters() if value.requires_grad)
    ranks = f"{nodes} x {world // nodes} rank" + ("s" if world > nodes else "")
    trained = [config.model.name, f"{count:,} parameters", config.adapter.method, method]
    how = [f"{trainer.state.global_step} steps on {ranks}", config.strategy(world)]
    how += [config.train.precision, trainer.args.device.type, engine]
    return [
        ("trained", ", ".join(filter(None, trained))),
        ("on", data),
        ("how", ", ".join(filter(None, how))),
    ]


def export_final(session: Session, exporter: Exporter[Any]) -> None:
    """Have rank 0 write `final/`; a failure there ends all ranks."""

    def write() -> None:
        if session.is_main:
            exporter.export(session.run, report=session.report)
            session.event(Event.EXPORTED, path=str(session.run.final))

    with session.phase(Phase.EXPORTING):
        distributed.together(write, "export")


def _evaluate(session: Session, evaluate: Callable[[], None]) -> Facts:
    """Evaluate the exported model; after a failure, return what went wrong and what to type."""
    try:
        with session.phase(Phase.EVALUATING):
            evaluate()
    except Stopped:
        raise
    except TataraError as error:
        session.event(Event.EVALUATION_FAILED, reason=str(error))
        run = session.run
        return [
            ("evaluation", f"failed: {error}"),
            ("", f"the model is whole in {run.final}/; to evaluate it again:"),
            ("", own_command("train", run.path.parent.name, "--resume", run.id)),
        ]
    return []


def forget(trainer: RunTrainer) -> None:
    """Free the training's memory before a model is loaded again."""
    trainer.accelerator.free_memory()
    # Otherwise ZeRO-3 makes a model that one rank builds later wait for the other ranks.
    unset_hf_deepspeed_config()
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def show(title: str, facts: Sequence[tuple[str, str]], file: TextIO) -> None:
    """Print facts as two columns; values are never cut, so that paths can be copied."""
    wide = max(len(name) for name, _ in facts) + 2
    lines = [f"  {name:<{wide}}{value}" for name, value in facts]
    print("", title, *lines, sep="\n", file=file, flush=True)
