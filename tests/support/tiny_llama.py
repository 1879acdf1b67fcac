"""A tiny Llama with random weights and a byte-level tokenizer, made in milliseconds for tests."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(pad: str | None = "<|pad|>") -> PreTrainedTokenizerFast:
    """One token a byte, and five special ones before them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token=pad,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_config(**changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
    }
    return LlamaConfig(**{**settings, **changes})


def make_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Weights wide enough that different inputs give clearly different outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(make_config(**changes)).eval()


def write_tiny(folder: Path, weights: bool = True, **changes: Any) -> Path:
    """A model's folder as people have them: config, tokenizer and, unless told not to, weights."""
    if weights:
        make_model(**changes).save_pretrained(folder)
    else:
        make_config(**changes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
