"""Text from a causal model, many prompts at a time, each as if it were alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin

from workloads.engine.generate.encode import ImagePrompts, Prompt, TextPrompts
from workloads.engine.memory_errors import is_out_of_memory
from workloads.engine.pretrained.chat import stop_ids

if TYPE_CHECKING:
    from PIL.Image import Image

Progress = Callable[[int, int], None]
BatchSize: TypeAlias = int | Literal["auto"]
# Where `auto` begins. On a CPU more rows only delay the first answers.
_MOST_ON_GPU, _MOST_ON_CPU = 256, 16
Speaker: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin
# Tokens read beyond a stop string's length: the first ones may be split differently.
_SLACK = 8


def generate(
    model: nn.Module,
    speaker: Speaker,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: BatchSize,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> list[str]:
    """Continuations in the order of the prompts, without special tokens, cut before `stop`.

    Takes the arguments of `stream`, and calls `progress(done, total)` after every batch.
    """
    found = [""] * len(prompts)
    done = 0
    for batch in stream(model, speaker, prompts, max_new_tokens, batch_size, **options):
        for index, text in batch:
            found[index] = text
        done += len(batch)
        if progress is not None:
            progress(done, len(prompts))
    return found


def stream(
    model: nn.Module,
    speaker: Speaker,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: BatchSize,
    *,
    images: "Sequence[Sequence[Image]]" = (),
    stop: Sequence[str] = (),
    greedy: bool = True,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 50,
    repetition_penalty: float | None = 1.0,
    seed: int | None = None,
    report: Callable[[str], None] | None = None,
) -> Iterator[list[tuple[int, str]]]:
    """Batches of (index of the prompt, continuation) as they are done, the longest prompts first.

    speaker: the model's tokenizer, or its processor, which takes texts from its chat template and
    `images`, a list for each prompt. With a tokenizer a prompt is a text, which gets the start
    token, or token ids as they are. repetition_penalty: None leaves the
    model's own. Greedy continuations do not depend on what else is in the batch; sampled ones do,
    and repeat with `seed`. Where a batch does not fit the GPU's memory, it is halved from then on.
    The model must be whole on this rank, and comes back in the mode it was in. Raises UserError for
    a prompt that leaves no room for `max_new_tokens`.
    """
    encoded: TextPrompts | ImagePrompts
    if isinstance(speaker, ProcessorMixin):
        encoded = ImagePrompts(speaker, [str(prompt) for prompt in prompts], images)
    else:
        encoded = TextPrompts(speaker, prompts)
    tokenizer: PreTrainedTokenizerBase = getattr(speaker, "tokenizer", speaker)
    encoded.check_room(model, max_new_tokens)
    rules = _rules(model, speaker, tokenizer, max_new_tokens, repetition_penalty)
    if not greedy:
        rules.update(do_sample=True, temperature=temperature, top_p=top_p, top_k=top_k)
    order = encoded.order()
    start, size = 0, first_batch(batch_size)
    while start < len(order):
        rows = order[start : start + size]
        own_seed = None if seed is None else seed + start
        with _ready(model), _seeded(own_seed):
            texts = _try_batch(model, tokenizer, encoded, rows, rules, stop)
        if texts is None:
            size = max(1, len(rows) // 2)
            torch.cuda.empty_cache()
            if report is not None:
                report(f"generation ran out of memory; going on with batches of {size}")
            continue
        yield list(zip(rows, texts, strict=True))
        start += len(rows)


def first_batch(wanted: BatchSize) -> int:
    """Size of the first batch; `auto` begins with what a large GPU holds, and is halved later."""
    if wanted != "auto":
        return wanted
    return _MOST_ON_GPU if torch.cuda.is_available() else _MOST_ON_CPU


def _rules(
    model: nn.Module,
    speaker: Speaker,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    repetition_penalty: float | None,
) -> GenerationConfig:
    """A complete generation config: an unset field would come from the model's own file."""
    ends = stop_ids(speaker, model.generation_config)
    if repetition_penalty is None:
        repetition_penalty = model.generation_config.repetition_penalty or 1.0
    # Padding is hidden by the attention mask, so any token will do.
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        num_beams=1,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=int(pad) if pad is not None else ends[0] if ends else 0,
        bos_token_id=tokenizer.bos_token_id,
    )


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module has its old mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """A random state of its own, which leaves training's untouched."""
    if seed is None:
        yield
        return
    # Of all GPUs that a rank sees it draws on its own.
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _try_batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoded: TextPrompts | ImagePrompts,
    rows: Sequence[int],
    rules: GenerationConfig,
    stop: Sequence[str],
) -> list[str] | None:
    """Continuations of a batch; None where it does not fit into memory but half of it may."""
    try:
        return _batch(model, tokenizer, encoded, rows, rules, stop)
    except RuntimeError as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
        # Freed by the caller: until this function has returned, the error holds the tensors.
        return None


def _batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoded: TextPrompts | ImagePrompts,
    rows: Sequence[int],
    rules: GenerationConfig,
    stop: Sequence[str],
) -> list[str]:
    from transformers import StoppingCriteriaList

    inputs = encoded.batch(rows, rules.pad_token_id, model)
    width = inputs["input_ids"].shape[1]
    ends = _StopStrings(tokenizer, stop, width, len(rows))
    result = model.generate(
        **inputs,
        generation_config=rules,
        stopping_criteria=StoppingCriteriaList([ends] if stop else []),
    )
    new = result[:, width:].tolist()
    return [
        _text(tokenizer, tokens[:end], set(rules.eos_token_id or ()), stop)
        for tokens, end in zip(new, ends.ends, strict=True)
    ]


class _StopStrings:
    """Ends a row as soon as its text holds one of the stop strings.

    Called by transformers after every token with ids of shape (rows, tokens so far); answers with
    a boolean a row. `ends` is how many new tokens a row has when it ends, None while it goes on.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], width: int, rows: int
    ) -> None:
        self.ends: list[int | None] = [None] * rows
        self._tokenizer, self._stop, self._width = tokenizer, tuple(stop), width
        self._window = max((len(text.encode()) for text in stop), default=0) + _SLACK

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, self._width :]
        # Only the tail can hold a string that was not there before the newest token.
        tails = self._tokenizer.batch_decode(new[:, -self._window :])
        for row, tail in enumerate(tails):
            if self.ends[row] is None and any(text in tail for text in self._stop):
                self.ends[row] = new.shape[1]
        ended = [end is not None for end in self.ends]
        return torch.tensor(ended, device=input_ids.device)


def _text(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: set[int], stop: Sequence[str]
) -> str:
    """The text before the first end token and before the first stop string."""
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    text = str(tokenizer.decode(tokens[:length], skip_special_tokens=True))
    cuts = [place for place in (text.find(word) for word in stop) if place >= 0]
    return text[: min(cuts)] if cuts else text


__all__ = ["Progress", "Prompt", "generate", "stream"]
