"""The supervised stage, which teaches the form of answers before GRPO.

Only the answer is learnt; prompt and image are context. The token ids are those that GRPO sees:
the prompt by the chat template, then the answer, then the end token.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Trainer,
    TrainingArguments,
)

from workloads.engine.generate.encode import lacks_beginning
from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.chat import answer_end_ids
from workloads.engine.training.arguments import trainer_arguments
from workloads.engine.training.trainer import RunTrainer
from workloads.errors import UserError
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared, dataset_of
from workloads.grpo.model import Processing, learner, prompt_texts, sees_images, tokenizer_of
from workloads.grpo.trl_hooks import LoadsByName
from workloads.run.session import Session

IGNORED = -100


class SftTrainer(LoadsByName, RunTrainer, Trainer):
    """transformers' trainer with the model's own loss over the labelled tokens."""


class Collate:
    """Rows of text and images as one padded batch, with labels on the answers alone.

    Gives input_ids, attention_mask, labels of shape (rows, longest), the processor's tensors of the
    images, and row_ids and tokens for the trainer.
    """

    def __init__(self, processing: Processing, answer: str, longest: int) -> None:
        self._processing, self._answer, self._longest = processing, answer, longest
        self._tokenizer = tokenizer_of(processing)
        self._end = answer_end_ids(processing)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        prompts, extra = self._prompts(rows)
        answers = [self._answer_ids(row) for row in rows]
        pairs = list(zip(prompts, answers, strict=True))
        width = max(len(prompt) + len(answer) for prompt, answer in pairs)
        pad = self._tokenizer.pad_token_id
        batch = {
            "input_ids": _padded([[*prompt, *answer] for prompt, answer in pairs], pad, width),
            "attention_mask": _padded(
                [[1] * len([*prompt, *answer]) for prompt, answer in pairs], 0, width
            ),
            "labels": _padded(
                [[IGNORED] * len(prompt) + answer for prompt, answer in pairs], IGNORED, width
            ),
        }
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in extra:
                batch[name] = _padded(extra.pop(name), 0, width)
        tokens = int(batch["attention_mask"].sum())
        return {**batch, **extra, "row_ids": [row["place"] for row in rows], "tokens": tokens}

    def _prompts(self, rows: Sequence[dict[str, Any]]) -> tuple[list[list[int]], dict[str, Any]]:
        """Token ids of the prompts, and the processor's other tensors."""
        texts = prompt_texts(self._processing, [row["prompt"] for row in rows])
        arguments: dict[str, Any] = {"text": texts}
        arguments["add_special_tokens"] = lacks_beginning(self._processing, texts[0])
        images = [
            image
            for row in rows
            for image in row.get("images", [row.get("image")])
            if image is not None
        ]
        if isinstance(self._processing, ProcessorMixin) and images:
            arguments["images"] = images
        made = dict(self._processing(**arguments))
        made.pop("attention_mask", None)
        ids = [list(prompt) for prompt in made.pop("input_ids")]
        kept = {name: value for name, value in made.items() if name.endswith("token_type_ids")}
        rest = {name: _tensor(value) for name, value in made.items() if name not in kept}
        return ids, {**kept, **rest} if images else {}

    def _answer_ids(self, row: dict[str, Any]) -> list[int]:
        """The answer in tokens with its end token; a cut answer would teach never to end."""
        text = self._answer.replace("{solution}", row["solution"])
        ids = [*self._tokenizer(text, add_special_tokens=False)["input_ids"]]
        if len(ids) >= self._longest:
            raise UserError(
                f"{row['place']}: expected an answer of fewer than {self._longest} tokens, found "
                f"{len(ids)}; raise grpo.max_completion_length or remove the row"
            )
        return [*ids, *self._end]


def _padded(rows: Sequence[Sequence[int]], value: int, width: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    parts = [part if isinstance(part, torch.Tensor) else torch.as_tensor(part) for part in value]
    return torch.stack(parts)


def build_sft_trainer(
    config: GrpoConfig,
    session: Session,
    base: Base[PreTrainedConfig],
    model: PreTrainedModel,
    processing: Processing,
    data: Prepared,
    done_steps: int,
) -> SftTrainer:
    """The trainer of the supervised stage."""
    own = trainer_arguments(config, session, None)
    if sees_images(base.config):
        own["ddp_find_unused_parameters"] = None
    trained = learner(model, config)
    if config.adapter.method != "full" and config.train.gradient_checkpointing:
        # Otherwise the first recomputed layer has no input that needs a gradient.
        trained.enable_input_require_grads()
    return SftTrainer(
        profile=config,
        session=session,
        model=trained,
        args=TrainingArguments(**own),
        processing_class=processing,
        train_dataset=dataset_of(data.examples, config.data),
        data_collator=Collate(processing, config.sft.answer, config.grpo.max_completion_length),
    )


__all__ = ["Collate", "SftTrainer", "build_sft_trainer"]
