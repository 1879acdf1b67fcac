"""Language models and their tokenizers, from the hub or a folder, as a profile asks for them."""

from dataclasses import dataclass
from pathlib import Path

from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workloads.config.sections import Model
from workloads.engine.pretrained import load
from workloads.engine.pretrained.files import Tell, chosen, locate, read_json
from workloads.errors import UserError
from workloads.llm.config import LlmConfig

# What published tokenizers call a padding token that they do not declare as one.
_PADDING = (
    *("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|PAD|>", "<PAD>"),
    *("<|padding|>", "<|endoftext|>", "<unk>", "[UNK]"),
)


def _silent(text: str) -> None:
    pass


def load_tokenizer(model: Model, tell: Tell = _silent) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token that never stands for the end of an answer.

    Raises UserError where there is none, or where it has more tokens than the model.
    """
    if model.fallbacks:
        model = chosen(model, _silent)
    folder = locate(model, tell, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=model.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{model.name}: expected a tokenizer that this version of transformers can load, "
            f"found none: {str(error).strip().splitlines()[0]}"
        ) from error
    _check_vocabulary(model.name, tokenizer, folder)
    note = choose_padding(tokenizer)
    if note:
        tell(note)
    return tokenizer


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        return
    size = read_json(folder / "config.json").get("vocab_size")
    if isinstance(size, int) and len(tokenizer) > size:
        raise UserError(
            f"{name}: expected a tokenizer of at most {size} tokens, which the model has, found "
            f"{len(tokenizer)}; use the tokenizer that belongs to the model"
        )


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


def load_model(config: LlmConfig, tell: Tell) -> PreTrainedModel:
    """The model that the config names; see `engine.pretrained.load.load_model`."""
    return load.load_model(config, _kind, tell)


def _kind(own: PreTrainedConfig) -> load.Kind:
    return load.TEXT


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, its tokenizer, and the base that an adapter sits on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: str | None = None


def load_for_use(name: str, precision: str, tell: Tell, revision: str | None = None) -> Loaded:
    """A model by hub id or folder for evaluation; see `engine.pretrained.load.load_for_use`."""
    wanted = Model(name=name, revision=revision)
    ready = load.load_for_use(wanted, precision, _kind, tell)
    has_own = (ready.folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(wanted if has_own else ready.source, tell)
    return Loaded(ready.model, tokenizer, ready.source.name if ready.is_adapter else None)
