"""Batched generation: as if each prompt were alone, whatever it is batched with."""

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.support.tiny_llama import make_config, make_model, make_tokenizer
from workloads.engine.generate import generate
from workloads.errors import UserError

pytestmark = pytest.mark.unit
PROMPTS = ["a", "What is 6 x 7?", "", "The quick brown fox jumps over it", "zz", "Hello there"]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model(seed=3)


def ask(model: Any, prompts: Any = PROMPTS, size: int = 4, length: int = 24, **more: Any) -> Any:
    return generate(model, make_tokenizer(), prompts, length, size, **more)


def one_by_one(model: LlamaForCausalLM, prompt: str, length: int) -> list[int]:
    """Greedy decoding by hand: no cache, no padding, no batch."""
    ids = make_tokenizer()(prompt)["input_ids"] or [1]
    new: list[int] = []
    for _ in range(length):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + new]), use_cache=False).logits
        new.append(int(logits[0, -1].argmax()))
        if new[-1] == 2:
            break
    return new


def test_the_batch_makes_no_difference(model: LlamaForCausalLM) -> None:
    expected = [
        make_tokenizer().decode(one_by_one(model, prompt, 24), skip_special_tokens=True)
        for prompt in PROMPTS
    ]
    assert len(set(expected)) == len(PROMPTS)  # else the comparison would show nothing
    for size in (1, 2, 4, 16):
        assert ask(model, size=size) == expected
    assert ask(model, PROMPTS[::-1]) == expected[::-1]


def test_auto_begins_with_many_and_halves_what_does_not_fit(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = model.generate

    def tight(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args, **kwargs)

    expected = ask(model)
    monkeypatch.setattr(model, "generate", tight)
    told: list[str] = []
    assert generate(model, make_tokenizer(), PROMPTS, 24, "auto", report=told.append) == expected
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert "batches of 1" in told[-1]


def test_token_ids_are_taken_as_they_are(model: LlamaForCausalLM) -> None:
    ids = [make_tokenizer()(prompt)["input_ids"] for prompt in PROMPTS]
    assert ask(model, ids) == ask(model)
    assert ask(model, [[1, *prompt] for prompt in ids]) != ask(model)


def test_a_start_token_is_not_doubled() -> None:
    from workloads.engine.generate.encode import token_ids

    tokenizer = make_tokenizer()
    assert token_ids(tokenizer, "<|begin|>ab")[:1] == [1]
    assert token_ids(tokenizer, "<|begin|>ab").count(1) == 1


def test_stop_strings_cut_and_end_early(model: LlamaForCausalLM) -> None:
    whole = ask(model, length=40)
    steps: list[int] = []
    handle = model.register_forward_hook(lambda *_: steps.append(1))
    chosen = max(whole, key=len)
    stop = chosen[3:5]
    cut = ask(model, [PROMPTS[whole.index(chosen)]], length=40, stop=["never there", stop])
    handle.remove()
    assert cut == [chosen[: chosen.index(stop)]]
    assert len(steps) < 12  # ended with the stop string, not after 40 tokens
    assert ask(model, length=40, stop=[stop]) == [text.split(stop)[0] for text in whole]


def test_every_end_token_ends_a_row() -> None:
    model = make_model(seed=3)
    tokenizer = make_tokenizer()
    first = one_by_one(model, "Hello there", 8)
    model.generation_config.eos_token_id = [2, first[4]]
    (text,) = ask(model, ["Hello there"])
    assert text == tokenizer.decode(first[: first.index(first[4])], skip_special_tokens=True)


def test_the_model_comes_back_as_it_was(model: LlamaForCausalLM) -> None:
    expected = ask(model)
    noisy = make_model(seed=3, attention_dropout=0.5)
    noisy.train()
    noisy.model.layers[0].eval()
    noisy.gradient_checkpointing_enable()
    noisy.config.use_cache = False
    assert ask(noisy) == expected  # no dropout while generating
    assert noisy.training and noisy.model.layers[1].training
    assert not noisy.model.layers[0].training
    assert not noisy.config.use_cache and noisy.is_gradient_checkpointing


def test_the_models_own_sampling_rules_do_not_leak(model: LlamaForCausalLM) -> None:
    changed = make_model(seed=3)
    changed.generation_config.do_sample = True
    changed.generation_config.temperature = 5.0
    changed.generation_config.repetition_penalty = 2.0
    changed.generation_config.max_length = 30
    assert ask(changed) == ask(model)


def test_sampling_repeats_with_a_seed(model: LlamaForCausalLM) -> None:
    state = torch.random.get_rng_state()
    first = ask(model, greedy=False, temperature=1.5, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert ask(model, greedy=False, temperature=1.5, seed=1) == first
    assert ask(model, greedy=False, temperature=1.5, seed=2) != first
    assert ask(model, greedy=False, top_k=1, seed=1) == ask(model)


class SmallMemory(LlamaForCausalLM):
    """Fits two rows at a time, as a full GPU would."""

    rows: list[int]
    error: type[RuntimeError] = torch.OutOfMemoryError
    words = "CUDA out of memory."

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        self.rows.append(input_ids.shape[0])
        if input_ids.shape[0] > 2:
            raise self.error(self.words)
        return super().forward(input_ids=input_ids, **kwargs)


def test_out_of_memory_halves_the_batch(model: LlamaForCausalLM) -> None:
    small = SmallMemory(make_config()).eval()
    small.load_state_dict(model.state_dict())
    small.rows = []
    told: list[str] = []
    assert ask(small, size=6, report=told.append) == ask(model)
    assert small.rows[0] == 6 and small.rows[1] == 3 and set(small.rows[2:]) <= {1, 2}
    assert len(told) == 2 and "batches of 1" in told[1]


def test_a_full_gpu_is_known_by_its_libraries_words_too(model: LlamaForCausalLM) -> None:
    """cuBLAS asks the driver for memory, not torch; other errors of the GPU end the answer."""
    small = SmallMemory(make_config()).eval()
    small.load_state_dict(model.state_dict())
    small.rows, small.error = [], RuntimeError
    small.words = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert ask(small, size=4) == ask(model)
    small.words = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ask(small, size=4)


def test_one_row_that_does_not_fit_is_an_error(model: LlamaForCausalLM) -> None:
    class NoMemory(SmallMemory):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    full = NoMemory(make_config()).eval()
    with pytest.raises(torch.OutOfMemoryError):
        ask(full, ["a", "b"])
    assert not full.training


def test_progress_and_nothing_to_do(model: LlamaForCausalLM) -> None:
    seen: list[tuple[int, int]] = []
    ask(model, size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (6, 6)]
    assert ask(model, []) == []


def test_a_prompt_without_room_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match="at most 488 tokens.*found 500"):
        ask(model, ["x" * 500])
