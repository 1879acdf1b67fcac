"""A language model in vLLM: many conversations, with the prompts and stops of `Speaker`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from workloads.config.sections import Train
from workloads.engine.generate.vllm import VllmEngine, lora_rank
from workloads.engine.pretrained.adapter import check_same_base
from workloads.engine.pretrained.chat import stop_ids
from workloads.engine.pretrained.files import Reporter, compute_dtype, positions
from workloads.errors import UserError
from workloads.llm.config import LlmData
from workloads.llm.model import find_for_use
from workloads.llm.speaker import Sampling, Speaker, Turn, check_room, data_of


class VllmSpeaker:
    """A model in vLLM, with the last of its adapters, or its own, over the base.

    Raises UserError for an adapter of another base, or one that vLLM does not support.
    """

    def __init__(
        self,
        name: str,
        precision: str,
        data: LlmData | None,
        adapters: Mapping[str, Path],
        report: Reporter,
    ) -> None:
        found = find_for_use(name, report)
        if found.tokenizer is None:
            raise UserError(f"{name}: expected a language model, found one of images")
        self._adapter = found.folder if found.is_adapter else None
        for folder in adapters.values():
            check_same_base(folder, found.base.model.name)
            self._adapter = folder
        self._tokenizer = found.tokenizer
        self._limit = positions(found.base.config.to_dict())
        self._stops = stop_ids(found.tokenizer, found.settings)
        put = data or data_of(found.folder)
        self._asker = Speaker(None, found.tokenizer, put, name, found.base.model.name)
        lora, place = {}, str(found.tokenizer.name_or_path)
        if self._adapter is not None:
            lora = {"enable_lora": True, "max_lora_rank": lora_rank(self._adapter)}
        dtype = compute_dtype(Train.model_validate({"precision": precision}))
        self._engine = VllmEngine(found.base.folder, dtype, tokenizer=place, **lora)

    def check(self, turns: Sequence[Turn], most: int) -> None:
        """UserError for a conversation that cannot be put, or has no room for `most` new tokens."""
        check_room(self._asker, turns, most, self._limit)

    def answers(
        self,
        talks: Sequence[Sequence[Turn]],
        sampling: Sampling,
        batch_size: int,
        report: Reporter | None = None,
    ) -> list[str]:
        """Answers to many conversations, in their order; vLLM makes its own batches of them."""
        texts = [self._asker.prompt(turns) for turns in talks]
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return self._engine.generate(
            [{"prompt_token_ids": prompt} for prompt in ids],
            sampling.max_new_tokens,
            greedy=sampling.greedy,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            stop_ids=self._stops,
            adapter=self._adapter,
        )
