"""What is left when the last step is taken."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, set_hf_deepspeed_config

from workloads.engine import finish as finishing
from workloads.engine.finish import finish, forget
from workloads.errors import Stopped, TataraError
from workloads.llm.finish import _bad_rows
from workloads.run import Run
from workloads.run.session import Session

pytestmark = pytest.mark.unit


class Zero3:
    """What transformers asks of DeepSpeed's config before it makes a model."""

    def is_zero3(self) -> bool:
        return True


def test_a_model_made_after_the_training_is_whole() -> None:
    """Under ZeRO-3 one that rank 0 makes alone, to export it, would wait for the other ranks."""
    config: Any = Zero3()
    set_hf_deepspeed_config(config)
    assert is_deepspeed_zero3_enabled()
    forget(SimpleNamespace(accelerator=SimpleNamespace(free_memory=lambda: None)))
    assert not is_deepspeed_zero3_enabled()


def test_bad_rows_are_counted_for_the_summary(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for data, count in (
        ({}, 0),
        ({"data": {"train": {"bad_rows": ["a:1: x", "a:2: y"]}, "evaluation": None}}, 2),
        ({"data": {"train": {"bad_rows": []}, "evaluation": {"bad_rows": ["b:1: z"]}}}, 1),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(data))
        assert _bad_rows(run) == count


class Stage:
    """A run at its last step: what each part of the end does is noted in `done`, in its order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.closed = False
        self.refused: TataraError | None = None
        self.screen = io.StringIO()
        self.session = Session(Run(folder / "demo" / "20260101-000000-abcd"), _console=self.screen)
        self.session.run.final.mkdir(parents=True)
        self.session._status = {"phase": "training", "progress": 0}
        monkeypatch.setattr(Session, "_write", lambda session: None)
        monkeypatch.setattr(finishing, "push_final", self.push)
        monkeypatch.setattr(finishing, "push_card", lambda *_: self.done.append("push card"))
        self.tracking = SimpleNamespace(keeps_artifacts=False)
        export = SimpleNamespace(enabled=True)
        self.trainer: Any = SimpleNamespace(
            profile=SimpleNamespace(name="demo", export=export, tracking=self.tracking),
            accelerator=SimpleNamespace(free_memory=lambda: None),
            watch=SimpleNamespace(trackers=self),
        )

    def push(self, config: Any, session: Session) -> TataraError | None:
        self.done.append("push")
        return self.refused

    def export(self, run: Run, report: Callable[[str], None]) -> None:
        self.done.append("export")

    def keep(self, folder: Path, files: list[Path]) -> None:
        self.done.append(f"keep {', '.join(str(file.relative_to(folder)) for file in files)}")

    def close(self) -> None:
        self.closed = True

    def refresh_card(self, run: Run) -> None:
        self.done.append("card")

    def end(self, evaluate: Callable[[], None]) -> None:
        exporter: Any = self
        results = [("held-out loss", "5 → 1")]
        finish(self.session, self.trainer, exporter, [("trained", "x")], lambda: results, evaluate)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.session.run.events.open()]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_the_model_is_on_the_hub_before_it_is_asked_anything(stage: Stage) -> None:
    stage.end(lambda: stage.done.append("evaluate"))
    assert stage.done == ["export", "push", "evaluate", "card", "push card"]
    lines = stage.screen.getvalue().splitlines()
    names = [line.split("  ")[1] for line in lines if line.startswith("  ")]
    assert names == ["trained", "held-out loss", "run", "model", "next"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), TataraError("x")])
def test_trouble_with_questions_does_not_fail_a_run_that_is_trained(
    stage: Stage, error: Exception
) -> None:
    """E-6: the model is whole and pushed; the summary says so, and what to type."""

    def evaluate() -> None:
        from workloads.engine import distributed

        def work() -> None:
            raise error

        distributed.together(work, "evaluation")

    stage.end(evaluate)
    assert stage.done[:2] == ["export", "push"] and "evaluation failed" in stage.events()
    said = stage.screen.getvalue()
    assert f"the model is whole in {stage.session.run.final}/" in said
    assert "train demo --resume 20260101-000000-abcd" in said and "held-out loss" in said


def test_a_stop_during_questions_still_stops(stage: Stage) -> None:
    def evaluate() -> None:
        raise Stopped("stopped during evaluation")

    with pytest.raises(Stopped):
        stage.end(evaluate)
    assert stage.closed, "the trackers"


def test_a_push_that_fails_fails_the_run_when_all_else_is_done(stage: Stage) -> None:
    stage.refused = TataraError("not on the hub")
    with pytest.raises(TataraError, match="not on the hub"):
        stage.end(lambda: stage.done.append("evaluate"))
    assert stage.done == ["export", "push", "evaluate", "card"]
    assert "held-out loss" in stage.screen.getvalue()


def test_the_report_and_the_images_go_to_the_trackers_when_asked(stage: Stage) -> None:
    """tracking.wandb_artifacts: last, so that the evaluation is in the report."""
    run = stage.session.run
    (run.path / "config.json").write_text('{"name": "demo", "workload": "llm"}')
    run.evaluation.mkdir()
    for image in (run.path / "loss.png", run.evaluation / "reach.png"):
        image.write_bytes(b"")
    stage.tracking.keeps_artifacts = True
    stage.end(lambda: stage.done.append("evaluate"))
    assert stage.done[-1] == "keep report.html, loss.png, evaluation/reach.png"
    assert stage.closed
