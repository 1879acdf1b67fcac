"""A language model that answers with the prompts of training, its stop tokens and adapters."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList, TextIteratorStreamer
from transformers.utils.logging import disable_progress_bar

from workloads.engine.generate import generate
from workloads.engine.hub.upload import FACTS
from workloads.engine.pretrained.adapter import adapter_folder, check_same_base, load_adapter
from workloads.engine.pretrained.chat import with_stops
from workloads.engine.pretrained.files import Reporter, positions
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.llm.config import PUT, LlmData, template_columns
from workloads.llm.data.conversation import filled
from workloads.llm.data.template import RowError, Template
from workloads.llm.model import load_for_use

BASE = "base"
TRAINED = "trained"
Turn = dict[str, Any]


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; greedy takes the likeliest token each time."""

    max_new_tokens: int = 512
    greedy: bool = False
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 50
    seed: int | None = None


@dataclass
class Speaker:
    """A model, its tokenizer, and its form of prompts; ready on its device."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    data: LlmData
    name: str
    base: str
    adapters: list[str] = field(default_factory=list)
    active: str = TRAINED

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The prompt of a conversation; raises UserError where the template refuses the turns."""
        own = self.data.model_copy(update={"format": "auto", "prompt": None})
        template = Template(own, self.tokenizer)
        turns = [self._put(turn) for turn in turns]
        if self.data.format == "text":
            return template.switches.begin + str(turns[-1]["content"])
        answer = {"role": "assistant", "content": "?"}
        row: dict[str, Any] = {"messages": [*turns, answer]}
        if self.data.format == "prompt_completion" and len(turns) == 1:
            row = {"prompt": turns[0]["content"], "completion": "?"}
        try:
            return template.prompt(row)
        except RowError as error:
            raise UserError(f"{self.name}: this conversation cannot be rendered: {error}") from None

    def _put(self, turn: Turn) -> Turn:
        """A question in training's template of columns, where that has one column."""
        columns = template_columns(self.data.prompt or "")
        if turn["role"] != "user" or len(columns) != 1:
            return turn
        return {**turn, "content": filled(self.data.prompt or "", {columns[0]: turn["content"]})}

    def answer(self, turns: Sequence[Turn], sampling: Sampling) -> str:
        """The whole answer to a conversation."""
        return "".join(self.stream(turns, sampling))

    def stream(
        self, turns: Sequence[Turn], sampling: Sampling, stop: threading.Event | None = None
    ) -> Iterator[str]:
        """Stream the answer in pieces; `stop` ends it after the current token."""
        text = self.prompt(turns)
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        sampling = replace(sampling, max_new_tokens=self.room(ids.shape[1], sampling))
        stop = stop or threading.Event()
        streamer: Any = TextIteratorStreamer(
            self.tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
        )
        settings = _settings(self, sampling)
        trouble: list[BaseException] = []

        def make() -> None:
            try:
                with torch.no_grad(), self._speaking():
                    self.model.generate(
                        input_ids=ids.to(self.model.device),
                        attention_mask=torch.ones_like(ids).to(self.model.device),
                        generation_config=settings,
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([lambda *_: stop.is_set()]),
                    )
            except BaseException as error:  # raised where the pieces are read
                trouble.append(error)
                streamer.end()

        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        thread = threading.Thread(target=make, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            stop.set()
            thread.join()
        if trouble:
            raise trouble[0]

    def answers(
        self,
        talks: Sequence[Sequence[Turn]],
        sampling: Sampling,
        batch_size: int,
        report: Reporter | None = None,
    ) -> list[str]:
        """Answers to many conversations, in their order, as many at a time as fit."""
        texts = [self.prompt(turns) for turns in talks]
        prompts = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        with self._speaking():
            return generate(
                self.model,
                self.tokenizer,
                prompts,
                sampling.max_new_tokens,
                batch_size,
                greedy=sampling.greedy,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
                report=report,
            )

    def check(self, turns: Sequence[Turn], most: int) -> None:
        """UserError for a conversation that cannot be put, or has no room for `most` new tokens."""
        check_room(self, turns, most, positions(self.model.config.to_dict()))

    def add_adapter(self, name: str, folder: Path) -> None:
        """Load one more adapter over the same base; raises UserError for one of another base."""
        if name in (*self.adapters, BASE):
            raise UserError(f"expected a new name for an adapter, found {name!r}; choose another")
        check_same_base(adapter_folder(folder, name), self.base)
        # A new adapter is loaded with dropout enabled.
        self.model = load_adapter(self.model, folder, name).eval()
        self.adapters.append(name)
        self.use(name)

    def merge(self) -> None:
        """Merge the active adapter into the base, and drop all others."""
        if self.adapters:
            self.model = self.model.merge_and_unload(adapter_names=[self.active])
            self.adapters, self.active = [], TRAINED

    def use(self, name: str) -> None:
        """Answer with an adapter, or with the base alone; raises UserError for an unknown one."""
        if name != BASE and name not in self.adapters:
            known = ", ".join([*self.adapters, *([BASE] if self.adapters else [])]) or "none"
            raise UserError(f"expected an adapter that is loaded ({known}), found {name!r}")
        if name != BASE:
            self.model.set_adapter(name, inference_mode=True)
        self.active = name

    def room(self, length: int, sampling: Sampling) -> int:
        """Number of new tokens that fit after a prompt; raises UserError where none does."""
        limit = positions(self.model.config.to_dict())
        if limit is None:
            return sampling.max_new_tokens
        if length >= limit:
            raise UserError(
                f"expected a prompt of fewer tokens than the model's {limit} positions, found "
                f"{length}; shorten it, or begin again by /reset"
            )
        return min(sampling.max_new_tokens, limit - length)

    def _speaking(self) -> AbstractContextManager[Any]:
        alone = self.active == BASE and bool(self.adapters)
        return self.model.disable_adapter() if alone else nullcontext()


def check_room(speaker: Speaker, turns: Sequence[Turn], most: int, limit: int | None) -> None:
    """UserError for a conversation that leaves no room for `most` new tokens in the positions."""
    length = len(speaker.tokenizer(speaker.prompt(turns), add_special_tokens=False)["input_ids"])
    if limit is not None and length + most > limit:
        raise UserError(
            f"expected a prompt of at most {limit - most} tokens, which leaves room for {most} "
            f"new ones in the model's {limit} positions, found {length}; shorten it, or lower "
            "--max-new-tokens"
        )


def load(name: str, precision: str, report: Reporter, data: LlmData | None = None) -> Speaker:
    """Load a model by folder or hub name, whole or an adapter with its base.

    data: the form of prompts; default: the export's, else the chat template alone.
    """
    disable_progress_bar()
    loaded = load_for_use(name, precision, report)
    speaker = Speaker(
        loaded.model, loaded.tokenizer, data or data_of(Path(name)), name, loaded.base.model.name
    )
    if loaded.adapter:
        speaker.adapters, speaker.active = ["default"], "default"
    return speaker


def data_of(folder: Path) -> LlmData:
    """The form of prompts in training, by the facts beside an exported model."""
    facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    own = {name: value for name, value in facts.get("data", {}).items() if name in PUT}
    return LlmData.model_construct(**{**LlmData(source=str(folder)).model_dump(), **own})


def _settings(speaker: Speaker, sampling: Sampling) -> Any:
    made = with_stops(speaker.tokenizer, speaker.model.generation_config)
    made.max_new_tokens, made.max_length = sampling.max_new_tokens, None
    made.do_sample = not sampling.greedy
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    for name, value in drawn.items():
        setattr(made, name, None if sampling.greedy else value)
    if made.pad_token_id is None:
        made.pad_token_id = speaker.tokenizer.pad_token_id
    return made


__all__ = ["BASE", "Sampling", "Speaker", "check_room", "data_of", "load"]
