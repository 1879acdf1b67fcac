"""Callbacks at each evaluation: answers to some held-out questions, and early stopping."""

import json
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from workloads.engine.generate import generate
from workloads.errors import Stopped, UserError
from workloads.llm.config import LlmConfig
from workloads.llm.data.columns import format_of
from workloads.llm.data.prepare import load_rows
from workloads.llm.data.template import RowError, Template
from workloads.run.session import Session


class StopEarly(TrainerCallback):
    """Ends training after so many evaluations in a row without a lower held-out loss."""

    def __init__(self, patience: int, session: Session) -> None:
        self._patience, self._session = patience, session

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide alike on all ranks: the loss is their mean; a resumed run knows earlier losses."""
        losses = [row["eval_loss"] for row in state.log_history if "eval_loss" in row]
        if not losses or not 0 < state.global_step < state.max_steps:
            return
        since = len(losses) - 1 - losses.index(min(losses))
        if since >= self._patience:
            self._session.report(
                f"stopping early: the held-out loss has not fallen below {min(losses):.4f} for "
                f"{since} evaluations (evaluation.patience)"
            )
            control.should_training_stop = True


@dataclass(frozen=True)
class HeldOutQuestion:
    """A held-out row to answer: its question, its prompt in tokens, its reference answer."""

    place: str
    asked: str
    prompt: list[int]
    answer: str


class SamplesCallback(TrainerCallback):
    """Writes answers to some held-out questions into the run, at each evaluation, on rank 0."""

    def __init__(self, config: LlmConfig, session: Session, tokenizer: Any) -> None:
        self._settings, self._session, self._tokenizer = config.evaluation, session, tokenizer
        self._questions = _questions(config, tokenizer)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._session.is_main:
            return

        def progress(done: int, of: int) -> None:
            self._session.progress()
            if self._session.stopping:
                raise Stopped("stopped while answering held-out questions")

        try:
            answers = generate(
                kwargs["model"],
                self._tokenizer,
                [question.prompt for question in self._questions],
                self._settings.max_new_tokens,
                self._settings.batch_size,
                progress=progress,
            )
        except Stopped:
            return  # the next step saves, with all ranks
        except UserError as error:
            self._session.report(f"no samples: {error}")
            self._questions = []
            return
        path = self._session.run.samples
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for question, answer in zip(self._questions, answers, strict=True):
                row = {"step": state.global_step, "place": question.place, "asked": question.asked}
                row |= {"output": answer, "answer": question.answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _questions(config: LlmConfig, tokenizer: Any) -> list[HeldOutQuestion]:
    """The first held-out rows that ask something."""
    template, held_out = Template(config.data, tokenizer), load_rows(config.data, "eval")
    found: list[HeldOutQuestion] = []
    for numbers, rows in held_out.batches(1):
        if len(found) == config.evaluation.samples:
            break
        if format_of(rows[0], config.data) == "text":
            continue
        try:
            text = template.prompt(rows[0])
            asked, answer = template.last_pair(rows[0])
        except RowError:
            continue  # reported where the rows were prepared
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found.append(HeldOutQuestion(held_out.place(numbers[0]), asked, ids, answer))
    return found


def callbacks(config: LlmConfig, session: Session, tokenizer: Any) -> list[TrainerCallback]:
    """The callbacks that the profile asks for."""
    wanted, made = config.evaluation, list[TrainerCallback]()
    if wanted.samples:
        strategy = config.strategy(session.world_size)
        if strategy in ("single", "ddp"):
            made.append(SamplesCallback(config, session, tokenizer))
        else:
            session.report(f"no samples: under {strategy} no rank has the whole model")
    if wanted.patience is not None:
        made.append(StopEarly(wanted.patience, session))
    return made
