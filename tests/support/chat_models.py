"""Tiny byte-level models with chat templates in the shape of public families, for tests."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, PreTrainedTokenizerFast

from tests.support.tiny_llama import make_config

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Renders the list of tools and the calls; `arguments` go through tojson.
TOOLS = (
    "{%- if tools %}{{ '<|im_start|>system\nTools:' }}"
    "{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.content %}{{- m.content }}{% endif %}"
    "{%- for c in m.tool_calls or [] %}{%- set f = c.function if c.function else c %}"
    '{{- \'<tool_call>\n{"name": "\' + f.name + \'", "arguments": \' }}'
    "{{- f.arguments | tojson }}{{- '}\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\n' }}"
    "{% endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"
)
# Two roles, and an end of a turn that is not the model's end token.
TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + (m.content | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Three roles by if and elif; any other role is written nowhere.
THREE = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + eos_token + '\n' }}"
    "{% elif m.role == 'system' %}{{ '<|system|>\n' + m.content + eos_token + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}"
    "{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    "{% endfor %}"
)
# The same in the Japanese instruction form.
JA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '\n\n### 指示:\n' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '\n\n### 応答:\n' + m.content }}"
    "{% if loop.last %}{{ eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '\n\n### 応答:\n' }}{% endif %}{% endfor %}"
)
# Writes the time of day; reads messages[0] without asking whether there is one.
DATED = (
    "{{ bos_token }}{{ '<|sys|>Now: ' + strftime_now('%d %b %Y %H') + '\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}{{ '<|eot|>' }}"
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + (m.content | trim) + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The prompt opens the tag of the thoughts.
THINK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% elif m.role == 'assistant' %}{% set c = m.content %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + c + '<|eos|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)

_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHATML_END = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_LLAMA_TOKENS = ("<unk>", "<s>", "</s>")
_LLAMA_ENDS = {"eos_token": "</s>", "bos_token": "<s>"}
_TURN_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_DATED_TOKENS = ("<|begin|>", "<|sys|>", "<|eot|>", "<|user|>", "<|assistant|>")
_THINK_TOKENS = ("<|bos|>", "<|eos|>", "<|User|>", "<|Assistant|>")
# Name → template or templates, tokens of their own, and which of these begin, end and pad.
FAMILIES: dict[str, tuple[Any, tuple[str, ...], dict[str, str]]] = {
    # The template ends turns with another token than the model's end token.
    "base-chatml": (
        CHATML,
        _CHATML_TOKENS,
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    ),
    "chatml": (CHATML, _CHATML_TOKENS, _CHATML_END),
    "tools": (TOOLS, _CHATML_TOKENS, _CHATML_END),
    "named": ({"tool_use": TOOLS, "rag": CHATML}, _CHATML_TOKENS, _CHATML_END),
    "short": (CHATML, _CHATML_TOKENS, _CHATML_END),
    "turns": (
        TURNS,
        _TURN_TOKENS,
        {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>"},
    ),
    "three": (THREE, _LLAMA_TOKENS, _LLAMA_ENDS),
    "ja": (JA, _LLAMA_TOKENS, _LLAMA_ENDS),
    "dated": (DATED, _DATED_TOKENS, {"eos_token": "<|eot|>", "bos_token": "<|begin|>"}),
    "think": (THINK, _THINK_TOKENS, {"eos_token": "<|eos|>", "bos_token": "<|bos|>"}),
    "plain": (None, ("<|endoftext|>",), {"eos_token": "<|endoftext|>"}),
}


def chat_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the chat template of a family."""
    template, special, ends = FAMILIES[family]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **ends)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def write_chat_model(folder: Path, family: str) -> Path:
    """A model's folder without weights, for model.random_init; `short` has 32 positions."""
    tokenizer = chat_tokenizer(family)
    tokenizer.save_pretrained(folder)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name) for name in names}
    settings: dict[str, Any] = {**ids, "vocab_size": len(tokenizer)}
    if family == "short":
        config: Any = GPT2Config(n_positions=32, n_embd=32, n_layer=2, n_head=2, **settings)
        config.architectures = ["GPT2LMHeadModel"]
    else:
        config = make_config(max_position_embeddings=4096, **settings)
        config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(ids))
    return folder
