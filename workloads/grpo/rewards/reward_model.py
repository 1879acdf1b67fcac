"""Rewards from a reward model: a sequence classifier with one output for a conversation."""

from functools import cached_property
from typing import Any

from workloads.errors import UserError
from workloads.grpo.rewards.scoring import Batch, Score

_AT_ONCE = 8  # conversations in a forward pass


class RewardModel:
    """Scores a completion by the model's one output for prompt and completion together."""

    def __init__(self, name: str) -> None:
        self._name = name

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer, loaded when first needed, in the type of the model's file."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._name)
            model = AutoModelForSequenceClassification.from_pretrained(self._name, dtype="auto")
        except (OSError, ValueError) as error:
            raise UserError(
                f"model:{self._name}: expected a reward model that transformers can load, found: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if model.config.num_labels != 1:
            raise UserError(
                f"model:{self._name}: expected a reward model with one output, found "
                f"{model.config.num_labels}; name a reward model"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        return model.to(device).eval().requires_grad_(False), tokenizer

    def __call__(self, batch: Batch) -> list[Score]:
        """One score a completion; images of a prompt stand as [image]."""
        import torch

        model, tokenizer = self._loaded
        texts = [self._conversation(batch, place) for place in range(len(batch))]
        scores: list[Score] = []
        for start in range(0, len(texts), _AT_ONCE):
            inputs = tokenizer(
                texts[start : start + _AT_ONCE],
                return_tensors="pt",
                padding=True,
                truncation=True,
                add_special_tokens=tokenizer.chat_template is None,
            ).to(model.device)
            with torch.inference_mode():
                logits = model(**inputs).logits[:, 0].float()
            scores += [Score(value, self._name) for value in logits.tolist()]
        return scores

    def _conversation(self, batch: Batch, place: int) -> str:
        from workloads.engine.pretrained.chat import fixed
        from workloads.grpo.rollouts.rollouts import prompt_text

        tokenizer = self._loaded[1]
        prompt = batch.prompts[place] if batch.prompts else ""
        if tokenizer.chat_template is None or isinstance(prompt, str):
            return f"{prompt_text(prompt)}\n{batch.texts[place]}"
        turns = [
            {"role": turn["role"], "content": prompt_text([turn]).partition(": ")[2]}
            for turn in prompt
        ]
        turns.append({"role": "assistant", "content": batch.texts[place]})
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, **fixed(tokenizer))
        return text
