"""Rewards on rows that training never saw: greedy answers before and after it, scored.

`evaluation/<when>/rewards.json` holds each reward's mean, and beside it what the commonest answer
of the training rows would earn if it were given to every question; `rewards.jsonl` the answers.
`when` is before, after, or blank: after training, with every picture grey.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from workloads.engine import distributed
from workloads.errors import Stopped, TataraError
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared, turns_of
from workloads.grpo.data.rows import Example, greyed
from workloads.grpo.evaluate.scores import ANSWERS, BEFORE, BLANK, FILE, TASK
from workloads.grpo.greedy import Asked, answers
from workloads.grpo.model import Processing
from workloads.grpo.prompts import Turns
from workloads.grpo.rewards.functions import WeightedReward, load_reward, right_completion
from workloads.run.integrity import write_atomically
from workloads.run.session import Session


@dataclass(frozen=True)
class Asker:
    """What answers: a model that is whole on this rank, and its tokenizer or processor."""

    model: PreTrainedModel
    processing: Processing


def measure_before(
    config: GrpoConfig, session: Session, asker: Asker, data: Prepared, resumed: bool
) -> None:
    """Ask the model as training finds it, once a run."""
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
    """Ask the held-out rows, a share to each rank that has a model; rank 0 writes the scores."""
    if not data.held_out:
        return
    able = [rank for rank, has in enumerate(distributed.gather(asker is not None)) if has]
    mine: list[dict[str, Any]] = []
    problem: TataraError | None = None
    with session.phase("evaluating"):
        try:
            if asker is not None:
                share = range(able.index(session.rank), len(data.held_out), len(able))
                mine = list(_rows(config, session, asker, data, share, when == BLANK))
        except TataraError as error:
            problem = error
        if distributed.agree(isinstance(problem, Stopped)):
            raise Stopped("stopped while asking held-out questions; the same command asks again")
        distributed.all_or_none(problem, "evaluation")
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
    blank: bool,
) -> Iterator[dict[str, Any]]:
    """The answers to this rank's share of the questions, with their rewards."""
    rewards = [load_reward(one.name, one.weight) for one in config.rewards]
    turns, size = turns_of(config.data), config.evaluation.batch_size
    with _at_work(asker.model, session):
        for start in range(0, len(share), size):
            if session.stopping:
                raise Stopped("stopped while asking held-out questions")
            indices = share[start : start + size]
            chosen = [data.held_out[index] for index in indices]
            chosen = [greyed(one) for one in chosen] if blank else chosen
            asked = [_asked(one, turns) for one in chosen]
            longest = config.grpo.max_completion_length
            texts = answers(asker.model, asker.processing, asked, longest)
            session.progress()
            for index, one, text in zip(indices, chosen, texts, strict=True):
                yield _row(index, one, text, rewards)


def _row(index: int, one: Example, text: str, rewards: Sequence[WeightedReward]) -> dict[str, Any]:
    scores = {reward.name: reward(text, one.solution) for reward in rewards}
    return {
        "index": index,
        "place": one.place,
        "question": one.problem,
        "output": text,
        "answer": one.solution,
        "rewards": scores,
        "right": scores[rewards[0].name] == 1.0,
    }


def _asked(one: Example, turns: Callable[[str, bool], Turns]) -> Asked:
    sees = one.picture is not None
    return Asked(turns(one.problem, sees), one.open_image() if sees else None)


@contextmanager
def _at_work(model: PreTrainedModel, session: Session) -> Iterator[None]:
    """The model on this rank's device and in evaluation mode; afterwards as and where it was."""
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
    """The solution that most training rows have; the first of several in the order of text."""
    counted = Counter(one.solution.strip() for one in data.examples)
    return min(counted, key=lambda solution: (-counted[solution], solution))


def _write(
    config: GrpoConfig,
    session: Session,
    data: Prepared,
    rows: list[dict[str, Any]],
    when: str,
    step: int,
) -> None:
    """Keep answers and scores, and say them in the events and, but for blank, in the metrics."""
    first = load_reward(config.rewards[0].name)
    constant = right_completion(commonest(data))
    earned = [first(constant, row["answer"]) for row in rows]
    means = {one.name: _mean([row["rewards"][one.name] for row in rows]) for one in config.rewards}
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
    session.event("evaluated", when=when, **scores)
    if when != BLANK:
        named = {f"held_out/{name}": value for name, value in means.items()}
        session.run.metric({"step": step, **named})


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
