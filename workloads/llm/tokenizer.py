"""A model's tokenizer with the chat template that a profile asks for, checked before it is used."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.chat import PROBE, chosen_template
from workloads.engine.pretrained.files import Reporter
from workloads.errors import UserError
from workloads.llm.config import LlmModel
from workloads.llm.new_tokens import add_tokens
from workloads.llm.prompt_formats import FORMS

# Names of padding tokens in published tokenizers that do not declare them.
_PADDING = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|PAD|>",
    "<PAD>",
    "<|padding|>",
    "<|endoftext|>",
    "<unk>",
    "[UNK]",
)
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_WORDS = 60  # pieces of the vocabulary for test lines that distinguish tokenizers
_A_LINE = 12


def load_tokenizer(base: Base[PreTrainedConfig], report: Reporter) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token that never stands for the end of an answer.

    Raises UserError where there is none, where it has more tokens than the model, and where it
    splits text differently from the SentencePiece file beside it.
    """
    name = base.model.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base.folder, trust_remote_code=base.model.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        if _sentencepiece_file(base.folder) and find_spec("sentencepiece") is None:
            reason = "its file needs the package sentencepiece; pip install sentencepiece"
        raise UserError(
            f"{name}: expected a tokenizer that this version of transformers can load, "
            f"found none: {reason}"
        ) from error
    size = base.config.get_text_config().to_dict().get("vocab_size")
    if isinstance(size, int) and len(tokenizer) > size:
        raise UserError(
            f"{name}: expected a tokenizer of at most {size} tokens, which the model has, found "
            f"{len(tokenizer)}; use the tokenizer that belongs to the model"
        )
    _check_pieces(name, tokenizer, base.folder)
    if isinstance(base.model, LlmModel):
        add_tokens(tokenizer, base.model, report)
    own = tokenizer.chat_template
    tokenizer.chat_template = chosen_template(base.model, own, _forms(tokenizer))
    note = choose_padding(tokenizer)
    if note:
        report(note)
    return tokenizer


def choose_padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the tokenizer a padding token other than its end token; returns a note on any change.

    Where padding and end are one token, a trainer that masks padding by id also masks the end of
    every answer, and the model never learns to stop. Raises UserError where there is neither.
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


def _sentencepiece_file(folder: Path) -> Path | None:
    return next((folder / name for name in _SENTENCEPIECE if (folder / name).is_file()), None)


def _check_pieces(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise UserError if a tokenizer's class reads its file wrongly, as a unigram model as BPE."""
    file = _sentencepiece_file(folder)
    if file is None or find_spec("sentencepiece") is None:
        return
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError):
        return  # another library's file of the same name, such as tiktoken's
    for line in _lines(model):
        expected = [model.id_to_piece(piece) for piece in model.encode(line)]
        own = tokenizer(line, add_special_tokens=False)["input_ids"]
        found = tokenizer.convert_ids_to_tokens(own)
        if found != expected:
            raise UserError(
                f"{name}: expected the tokens of the SentencePiece file {file.name} for {line!r}, "
                f"{_few(expected)}, found {_few(found)} by {type(tokenizer).__name__}; set the "
                "right tokenizer_class in tokenizer_config.json, or remove the file if it belongs "
                "to another tokenizer"
            )


def _lines(model: Any) -> Iterator[str]:
    """Test lines of pieces spread over the model's vocabulary, so that none is unknown."""
    plain = (
        piece
        for piece in range(model.get_piece_size())
        if not (model.is_control(piece) or model.is_unknown(piece) or model.is_byte(piece))
    )
    words = [model.id_to_piece(piece).replace("▁", " ") for piece in plain]
    words = words[:: max(1, len(words) // _WORDS)]
    for start in range(0, len(words), _A_LINE):
        line = "".join(words[start : start + _A_LINE]).strip()
        if line and not any(model.is_unknown(piece) for piece in model.encode(line)):
            yield line


def _few(tokens: list[Any]) -> str:
    return " ".join(map(str, tokens[:8])) + (" …" if len(tokens) > 8 else "")


def _forms(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The named prompt formats as chat templates, with the tokenizer's first token."""
    begin = tokenizer.bos_token_id
    starts = begin is not None and tokenizer(PROBE)["input_ids"][:1] == [begin]
    head = "{{ bos_token }}" if starts else ""
    return {name: head + form.template() for name, form in FORMS.items()}


__all__ = ["choose_padding", "load_tokenizer"]
