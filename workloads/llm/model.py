"""Language models and their tokenizers, from the hub or a folder, as a profile asks for them."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workloads.config.sections import Model
from workloads.engine.pretrained import load
from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.files import Tell
from workloads.errors import UserError
from workloads.llm.config import LlmConfig

# What published tokenizers call a padding token that they do not declare as one.
_PADDING = (
    *("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|PAD|>", "<PAD>"),
    *("<|padding|>", "<|endoftext|>", "<unk>", "[UNK]"),
)


def load_tokenizer(base: Base[PreTrainedConfig], tell: Tell) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token that never stands for the end of an answer.

    Raises UserError where there is none, or where it has more tokens than the model.
    """
    name = base.model.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base.folder, trust_remote_code=base.model.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{name}: expected a tokenizer that this version of transformers can load, "
            f"found none: {str(error).strip().splitlines()[0]}"
        ) from error
    size = base.config.get_text_config().to_dict().get("vocab_size")
    if isinstance(size, int) and len(tokenizer) > size:
        raise UserError(
            f"{name}: expected a tokenizer of at most {size} tokens, which the model has, found "
            f"{len(tokenizer)}; use the tokenizer that belongs to the model"
        )
    note = choose_padding(tokenizer)
    if note:
        tell(note)
    return tokenizer


def choose_padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the tokenizer a padding token other than its end token; say what was done, if anything.

    Where padding and end are one token, a trainer that masks padding by id also masks the end of
    every answer, and the model never learns to stop.
    """
    pad, end = tokenizer.pad_token, tokenizer.eos_token
    if pad is not None and pad != end:
        return ""
    known = tokenizer.get_vocab()
    found = next((token for token in _PADDING if token in known and token != end), None)
    if found is not None:
        tokenizer.pad_token = found
        return f"tokenizer: padding with {found}"
    if end is None:
        raise UserError(
            "tokenizer: expected a padding or an end token, found neither; declare one in "
            "tokenizer_config.json"
        )
    tokenizer.pad_token = end
    return (
        f"tokenizer: no token of its own for padding, so {end} pads; it is masked by position, "
        "not by id, and the end of an answer stays a label"
    )


def load_model(base: Base[PreTrainedConfig], config: LlmConfig, tell: Tell) -> PreTrainedModel:
    """The base as the config asks for it; see `engine.pretrained.load.load_model`."""
    return load.load_model(base, config, _kind, tell)


def _kind(own: PreTrainedConfig) -> load.Kind:
    return load.TEXT


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, its tokenizer, the base of its weights, and its adapter if any."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: Base[PreTrainedConfig]
    adapter: Path | None = None


def load_for_use(name: str, precision: str, tell: Tell, revision: str | None = None) -> Loaded:
    """A model by hub id or folder for evaluation; see `engine.pretrained.load.load_for_use`."""
    ready = load.load_for_use(Model(name=name, revision=revision), precision, _kind, tell)
    base = ready.base
    if ready.adapter and (ready.adapter / "tokenizer_config.json").is_file():
        base = replace(base, folder=ready.adapter)
    return Loaded(ready.model, load_tokenizer(base, tell), ready.base, ready.adapter)
