"""Held-out questions are answered at each evaluation, and training ends where nothing improves."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from tests.support.tiny_llama import make_model, make_tokenizer
from workloads.engine.export.export import BEST, best_checkpoint, source_of
from workloads.errors import UserError
from workloads.llm.callbacks import SamplesCallback, StopEarly
from workloads.llm.config import LlmConfig
from workloads.run import Run
from workloads.run.integrity import SEAL

pytestmark = pytest.mark.unit
ARGS: Any = None


class FakeSession(SimpleNamespace):
    """A session of one rank that keeps what it is told."""

    def __init__(self, run: Run) -> None:
        super().__init__(run=run, is_main=True, world_size=1, told=[], stopping=False)

    def report(self, text: str) -> None:
        self.told.append(text)

    def progress(self) -> None:
        pass


def state_of(*losses: float) -> TrainerState:
    state = TrainerState(global_step=10 * len(losses), max_steps=1000)
    state.log_history = [{"step": 10 * (i + 1), "eval_loss": loss} for i, loss in enumerate(losses)]
    return state


@pytest.mark.parametrize(
    ("losses", "stops"),
    [((3.0, 2.0), False), ((2.0, 3.0), False), ((2.0, 3.0, 2.5), True), ((2.0, 2.0, 2.0), True)],
)
def test_training_ends_where_the_held_out_loss_falls_no_more(
    tmp_path: Path, losses: tuple[float, ...], stops: bool
) -> None:
    session: Any = FakeSession(Run(tmp_path))
    control = TrainerControl()
    StopEarly(2, session).on_evaluate(ARGS, state_of(*losses), control)
    assert control.should_training_stop is stops
    assert bool(session.told) is stops


def test_samples_of_held_out_questions_are_kept_in_the_run(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}?", "answer": f"A{i}"} for i in range(8)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": str(source), "eval_rows": 4}
    evaluation = {"samples": 2, "every_steps": 1, "max_new_tokens": 4}
    config = LlmConfig.model_validate(
        {
            "workload": "llm",
            "name": "t",
            "model": {"name": "m"},
            "data": data,
            "evaluation": evaluation,
        }
    )
    session: Any = FakeSession(Run(tmp_path / "run"))
    samples = SamplesCallback(config, session, make_tokenizer())
    model = make_model().train()
    for step in (1, 2):
        samples.on_evaluate(ARGS, TrainerState(global_step=step), TrainerControl(), model=model)
    session.stopping = True  # a stop does not wait for the answers
    samples.on_evaluate(ARGS, TrainerState(global_step=3), TrainerControl(), model=model)
    assert model.training
    lines = session.run.samples.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["step"] for row in found] == [1, 1, 2, 2]
    assert found[0]["asked"].startswith("Q") and found[0]["answer"] == "A" + found[0]["asked"][1]
    assert found[0]["output"] == found[2]["output"]


def test_the_checkpoint_with_the_lowest_held_out_loss_is_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(UserError, match="expected a checkpoint that was evaluated"):
        source_of(run, BEST, print)
    for step in (10, 20, 30):
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if step != 20:
            (folder / SEAL).write_text("{}")
    rows = [(10, 2.0), (20, 1.0), (30, 3.0)]
    lines = (json.dumps({"step": step, "eval_loss": loss}) for step, loss in rows)
    run.evaluations.write_text("\n".join(lines) + "\n")
    best = best_checkpoint(run)
    assert best is not None and best.name == "checkpoint-10"  # 20 was never finished
