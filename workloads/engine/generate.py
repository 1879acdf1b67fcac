"""Text from a causal language model, many prompts at a time, each as if it were alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workloads.engine.pretrained.chat import stop_ids
from workloads.engine.pretrained.files import positions
from workloads.errors import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Prompt = str | Sequence[int]
Progress = Callable[[int, int], None]
# Tokens looked at beyond a stop string's bytes: a tokenizer may cut the first ones differently.
_SLACK = 8


def generate(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
    *,
    stop: Sequence[str] = (),
    greedy: bool = True,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 50,
    seed: int | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[str]:
    """Continuations in the order of the prompts, without special tokens, cut before `stop`.

    Takes the arguments of `stream`, and calls `progress(done, total)` after every batch.
    """
    found = [""] * len(prompts)
    pieces = stream(
        model,
        tokenizer,
        prompts,
        max_new_tokens,
        batch_size,
        stop=stop,
        greedy=greedy,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        tell=tell,
    )
    done = 0
    for batch in pieces:
        for index, text in batch:
            found[index] = text
        done += len(batch)
        if progress is not None:
            progress(done, len(prompts))
    return found


def stream(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
    *,
    stop: Sequence[str] = (),
    greedy: bool = True,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 50,
    seed: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[list[tuple[int, str]]]:
    """Batches of (index of the prompt, continuation) as they are done, the longest prompts first.

    A prompt is a text, which gets the tokenizer's own start token, or token ids taken as they are.
    Greedy continuations do not depend on what else is in the batch; sampled ones do, and repeat
    with `seed`. Where a batch does not fit the GPU's memory, it is halved from then on. The model
    must be whole on this rank, and comes back in the mode it was in. Raises UserError for a prompt
    that leaves no room for `max_new_tokens`.
    """
    ids = [_ids(tokenizer, prompt) for prompt in prompts]
    _check_room(model, ids, max_new_tokens)
    rules = _rules(model, tokenizer, max_new_tokens, greedy, (temperature, top_p, top_k))
    order = sorted(range(len(ids)), key=lambda index: (-len(ids[index]), index))
    start = 0
    while start < len(order):
        indices = order[start : start + batch_size]
        own_seed = None if seed is None else seed + start
        with _ready(model), _seeded(own_seed):
            texts = _try_batch(model, tokenizer, [ids[index] for index in indices], rules, stop)
        if texts is None:
            batch_size = max(1, len(indices) // 2)
            torch.cuda.empty_cache()
            if tell is not None:
                tell(f"generation ran out of memory; going on with batches of {batch_size}")
            continue
        yield list(zip(indices, texts, strict=True))
        start += len(indices)


def _ids(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt) -> list[int]:
    if not isinstance(prompt, str):
        found = list(prompt)
    else:
        # A text made by a chat template has the start token already.
        has_start = bool(tokenizer.bos_token) and prompt.startswith(str(tokenizer.bos_token))
        found = list(tokenizer(prompt, add_special_tokens=not has_start)["input_ids"])
    if not found and tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    if not found:
        raise UserError("expected a prompt, found an empty one and no start token to begin with")
    return found


def _check_room(model: nn.Module, ids: list[list[int]], max_new_tokens: int) -> None:
    limit = positions(model.config.to_dict())
    longest = max((len(one) for one in ids), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise UserError(
            f"expected prompts of at most {limit - max_new_tokens} tokens, which leave room for "
            f"{max_new_tokens} new ones in the model's {limit} positions, found {longest}; ask "
            "with fewer examples or fewer new tokens"
        )


def _rules(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    max_new_tokens: int,
    greedy: bool,
    sampling: tuple[float, float, int],
) -> "GenerationConfig":
    """Every rule of generation spelt out: what is left open is taken from the model's own file."""
    from transformers import GenerationConfig

    ends = stop_ids(tokenizer, model.generation_config)
    temperature, top_p, top_k = sampling
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        temperature=1.0 if greedy else temperature,
        top_p=1.0 if greedy else top_p,
        top_k=50 if greedy else top_k,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=_pad_id(tokenizer, ends),
        bos_token_id=tokenizer.bos_token_id,
    )


def _pad_id(tokenizer: "PreTrainedTokenizerBase", ends: list[int]) -> int:
    """What fills a row's free places; the attention mask hides it, so any token will do."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return ends[0] if ends else 0


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every part gets back the mode it had."""
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
    """Random numbers of our own, which leave training's untouched."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _try_batch(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    batch: list[list[int]],
    rules: "GenerationConfig",
    stop: Sequence[str],
) -> list[str] | None:
    """Continuations of a batch; None where it does not fit into memory but half of it may."""
    try:
        return _batch(model, tokenizer, batch, rules, stop)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        # Freed by the caller: until this function has returned, the error holds the tensors.
        return None


def _batch(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    batch: list[list[int]],
    rules: "GenerationConfig",
    stop: Sequence[str],
) -> list[str]:
    from transformers import StoppingCriteriaList

    device = next(model.parameters()).device
    width = max(len(ids) for ids in batch)
    padded = [[rules.pad_token_id] * (width - len(ids)) + ids for ids in batch]
    masks = [[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]
    ends = _StopStrings(tokenizer, stop, width, len(batch))
    result = model.generate(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=torch.tensor(masks, device=device),
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
        self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str], width: int, rows: int
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
    tokenizer: "PreTrainedTokenizerBase", tokens: list[int], ends: set[int], stop: Sequence[str]
) -> str:
    """The text before the first end token and before the first stop string."""
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    text = str(tokenizer.decode(tokens[:length], skip_special_tokens=True))
    cuts = [place for place in (text.find(one) for one in stop) if place >= 0]
    return text[: min(cuts)] if cuts else text


__all__ = ["Progress", "Prompt", "generate", "stream"]
