"""Builds the folders of the tiny models that demo and tests train: config and tokenizer.

    python -m workloads.llm.tiny [FOLDER]        (default: those in data/demo)

The folder holds no weights: a run starts from random ones (`model.random_init`). The tokenizer is a
byte-level BPE trained on files of rows. Every digit is a token of its own, so that 17 and 170
share what is learnt about 1 and 7. Building is deterministic: the same rows give the same bytes.

The size learns most in half a minute on one core: on the 300 rows of gsm8k.jsonl 64 wide
and 4 deep reaches a held-out loss of 0.40 after 20 epochs, where 128 wide stands at 0.65 after as
much time; on arithmetic.jsonl 98 % of held-out answers are right after 400 steps of 32 rows.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from workloads.llm.japanese import DIALOGUE, QUESTIONS, SUMMARY

DEMO = Path("data/demo")
# Japanese has no blanks: a run of one script is about a word or the particles behind it. Without
# such bounds a name is cut in another way wherever it stands (は松山|市です, 松山|市で), and who
# copies it has to learn every way; with them 松山市 is the same token in every sentence.
SCRIPTS = r"\p{Han}+|\p{Hiragana}+|[\p{Katakana}ー]+"


@dataclass(frozen=True)
class TinyRecipe:
    """rows: files in data/demo to train the tokenizer on; vocabulary: its largest size.

    runs: pattern of what no token goes beyond, for a language without blanks.
    """

    rows: tuple[str, ...]
    vocabulary: int
    width: int = 64
    runs: str | None = None


# By the folder below data/demo.
FOLDERS: Mapping[str, TinyRecipe] = MappingProxyType(
    {
        "tiny-llama": TinyRecipe(("gsm8k.jsonl",), 1536),
        "tiny-arithmetic": TinyRecipe(("arithmetic.jsonl",), 512),
        "tiny-japanese": TinyRecipe((DIALOGUE, QUESTIONS, SUMMARY), 2048, width=96, runs=SCRIPTS),
    }
)
_COLUMNS = ("question", "answer", "document", "summary")
PAD, BEGIN, END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|begin|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)

# One line for each part; `generation` marks what the assistant says, for tools that ask for it.
CHAT_TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}\n"
    "{{- raise_exception('expected role system, user or assistant, found ' "
    "~ message['role']) }}\n"
    "{%- endif %}\n"
    "{{- '<|' ~ message['role'] ~ '|>' }}\n"
    "{%- if message['role'] == 'assistant' %}\n"
    "{%- generation %}{{- message['content'] ~ eos_token }}{%- endgeneration %}\n"
    "{%- else %}\n"
    "{{- message['content'] ~ eos_token }}\n"
    "{%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}\n"
)


def build(folder: Path, recipe: TinyRecipe, data: Path = DEMO) -> None:
    """Write config.json, generation_config.json and the tokenizer's files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (text for name in recipe.rows for text in _texts(data / name))
    tokenizer = train_tokenizer(texts, recipe.vocabulary, recipe.runs)
    _write_json(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "config.json", _model_config(tokenizer.get_vocab_size(), recipe.width))
    _write_json(folder / "generation_config.json", _generation_config())
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def train_tokenizer(texts: Iterator[str], vocabulary: int, runs: str | None = None) -> Tokenizer:
    """A byte-level BPE of at most `vocabulary` tokens: digits one by one, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *([pre_tokenizers.Split(Regex(runs), "isolated")] if runs else []),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
        special_tokens=[(BEGIN, SPECIAL_TOKENS.index(BEGIN))],
    )
    return tokenizer


def _texts(rows: Path) -> Iterator[str]:
    with rows.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield from (turn["content"] for turn in row.get("messages", ()))
            yield from (row[name] for name in _COLUMNS if name in row)


def _ids() -> dict[str, int]:
    return {
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
        "bos_token_id": SPECIAL_TOKENS.index(BEGIN),
        "eos_token_id": SPECIAL_TOKENS.index(END),
    }


def _model_config(vocabulary: int, width: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "intermediate_size": 2 * width,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024,
        # Rows are some hundred tokens long: slower waves than these would look constant.
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        # So narrow a model learns faster from wider weights than the usual 0.02.
        "initializer_range": 0.05,
        "use_cache": True,
        "dtype": "float32",
        **_ids(),
    }


def _generation_config() -> dict[str, Any]:
    return {"do_sample": False, "max_new_tokens": 128, **_ids()}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BEGIN,
        "eos_token": END,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "model_max_length": 1024,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name, recipe in FOLDERS.items():
        build(Path(sys.argv[1] if len(sys.argv) > 1 else DEMO) / name, recipe)
