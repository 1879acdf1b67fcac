"""Rewards on held-out rows: greedy answers before and after training, scored.

`evaluation/<when>/rewards.json` holds each reward's mean, and what the commonest answer of the
training rows would earn if given to every question; `rewards.jsonl` the answers.
`when` is before, after, or blank: after training, with every image grey.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerState

from workloads.engine import distributed
from workloads.engine.generate import first_batch
from workloads.errors import Stopped
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared, turns_of
from workloads.grpo.data.rows import Example, greyed, solution_column
from workloads.grpo.evaluate.scores import ANSWERS, BEFORE, BLANK, FILE, TASK
from workloads.grpo.model import Processing, answers, tokenizer_of
from workloads.grpo.rewards.functions import right_completion
from workloads.grpo.rewards.scoring import Batch, Score, load_scorer
from workloads.run.events import Event, Phase
from workloads.run.integrity import write_atomically
from workloads.run.session import Session


@dataclass(frozen=True)
class Asker:
    """A model that is whole on this rank, and its tokenizer or processor."""

    model: PreTrainedModel
    processing: Processing

    def token_ids(self, text: str) -> list[int]:
        """Token ids of an answer, which a reward may want."""
        tokenizer = tokenizer_of(self.processing)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def measure_before(
    config: GrpoConfig, session: Session, asker: Asker, data: Prepared, resumed: bool
) -> None:
    """Evaluate the model before its training, once a run."""
    known = distributed.from_main((session.run.evaluation / BEFORE / FILE).is_file())
    if not (known or resumed):
        measure(config, session, asker, data, BEFORE, step=0)


def measure(
    config: GrpoConfig,
    session: Session,
    asker: Asker | None,
    data: Prepared,
    when: str,
    step: int,
) -> None:
    """Evaluate held-out rows, a share on each rank that has a model; rank 0 writes the scores."""
    if not data.held_out:
        return
    able = [rank for rank, has in enumerate(distributed.gather(asker is not None)) if has]

    def answer() -> list[dict[str, Any]]:
        if asker is None:
            return []
        share = range(able.index(session.rank), len(data.held_out), len(able))
        return list(_rows(config, session, asker, data, share, step, when == BLANK))

    with session.phase(Phase.EVALUATING):
        mine = distributed.together(answer, "evaluation")
        rows = [row for part in distributed.gather(mine) for row in part]
        if session.is_main:
            _write(config, session, data, sorted(rows, key=lambda row: row["index"]), when, step)
        distributed.barrier()


def _rows(
    config: GrpoConfig,
    session: Session,
    asker: Asker,
    data: Prepared,
    share: Sequence[int],
    step: int,
    blank: bool,
) -> Iterator[dict[str, Any]]:
    """The answers to this rank's share of the questions, with their rewards."""
    scorer = load_scorer(config.rewards, session.report, session.progress)
    turns, size = turns_of(config.data), first_batch(config.evaluation.batch_size)
    with _at_work(asker.model, session):
        for start in range(0, len(share), size):
            if session.stopping:
                raise Stopped("stopped while asking held-out questions")
            indices = share[start : start + size]
            chosen = [data.held_out[index] for index in indices]
            chosen = [greyed(example) for example in chosen] if blank else chosen
            prompts = [turns(example.question) for example in chosen]
            images = [example.open_images() for example in chosen]
            longest = config.grpo.max_completion_length
            texts = answers(asker.model, asker.processing, prompts, images, longest)
            session.progress()
            batch = Batch(
                [[{"role": "assistant", "content": text}] for text in texts],
                [solution_column(example) for example in chosen],
                prompts,
                [asker.token_ids(text) for text in texts],
                trainer_state=TrainerState(global_step=step),
            )
            scores = {reward.name: scorer.score(reward, batch) for reward in scorer.rewards}
            for place, (index, example, text) in enumerate(
                zip(indices, chosen, texts, strict=True)
            ):
                yield _row(
                    index, example, text, {name: found[place] for name, found in scores.items()}
                )


def _row(index: int, example: Example, text: str, scores: dict[str, Score]) -> dict[str, Any]:
    return {
        "index": index,
        "place": example.place,
        "question": example.problem,
        "output": text,
        "answer": solution_column(example),
        "rewards": {name: score.value for name, score in scores.items()},
        "why": {name: score.why for name, score in scores.items() if score.why},
        "right": next(iter(scores.values())).value == 1.0,
    }


@contextmanager
def _at_work(model: PreTrainedModel, session: Session) -> Iterator[None]:
    """The model on this rank's device in evaluation mode; afterwards both are restored."""
    was_training, was_at = model.training, model.device
    if torch.cuda.is_available() and was_at.type == "cpu":
        model.to(f"cuda:{session.local_rank}")
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        if model.device != was_at:
            model.to(was_at)


def commonest(data: Prepared) -> str:
    """The most frequent solution of the training rows; of several the first by text."""
    counted = Counter(example.solution.strip() for example in data.examples)
    return min(counted, key=lambda solution: (-counted[solution], solution))


def _write(
    config: GrpoConfig,
    session: Session,
    data: Prepared,
    rows: list[dict[str, Any]],
    when: str,
    step: int,
) -> None:
    """Write answers and scores to files, events and, except for blank, to the metrics."""
    scorer = load_scorer(config.rewards, session.report, session.progress)
    constant = Batch(
        [right_completion(commonest(data))] * len(rows),
        [row["answer"] for row in rows],
        [row["question"] for row in rows],
        [[]] * len(rows),
        trainer_state=TrainerState(global_step=step),
    )
    earned = [score.value for score in scorer.score(scorer.rewards[0], constant)]
    names = [function.name for function in config.rewards.functions]
    means = {name: _mean([row["rewards"][name] for row in rows]) for name in names}
    scores = {
        "task": TASK,
        "rows": len(rows),
        **means,
        "commonest_answer": _mean(earned),
        "commonest_text": commonest(data),
        "step": step,
        "answers": ANSWERS,
    }
    folder = session.run.evaluation / when
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / ANSWERS).write_text("".join(lines), encoding="utf-8", errors="replace")
    write_atomically(folder / FILE, json.dumps(scores, indent=1, ensure_ascii=False))
    session.event(Event.EVALUATED, when=when, **scores)
    if when != BLANK:
        given = {name: value for name, value in means.items() if value is not None}
        named = {f"held_out/{name}": value for name, value in given.items()}
        session.run.eval_metric({"step": step, **named})


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the given scores; None where every reward abstained."""
    given = [value for value in values if value is not None]
    return round(sum(given) / len(given), 6) if given else None
