"""Round trip of texts: finds characters that a tokenizer drops or rewrites."""

import json
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

_SHOWN = 8  # characters named for one row
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


class Back:
    """Compares texts with their decoded tokens; skipped for tokenizers that keep every byte."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._keeps_bytes, self._form = _nature(tokenizer)
        special = sorted(token.content for token in tokenizer.added_tokens_decoder.values())
        joined = "|".join(re.escape(token) for token in special)
        # Decoders add spaces around special tokens, and strip leading ones.
        self._around = re.compile(f" *({joined}) *") if joined else None

    def lost(self, texts: Sequence[str], ids: Sequence[NDArray[np.int32]]) -> dict[int, str]:
        """Index of each text that does not come back → the lost characters.

        ids: the tokens of each text, (tokens,).
        """
        asked = [place for place, text in enumerate(texts) if not self._is_kept(text)]
        if not asked:
            return {}
        decoded = self._tokenizer.batch_decode(
            [ids[place].tolist() for place in asked],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        found = {}
        for place, back in zip(asked, decoded, strict=True):
            before, after = self._plain(texts[place]), self._plain(back)
            if before != after:
                found[place] = _difference(before, after)
        return found

    def _is_kept(self, text: str) -> bool:
        if not self._keeps_bytes:
            return False
        return not self._form or unicodedata.is_normalized(self._form, text)  # type: ignore[arg-type]

    def _plain(self, text: str) -> str:
        return (self._around.sub(r"\1", text) if self._around else text).strip(" ")


def _nature(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, str]:
    """Whether every byte has a token, and the Unicode form that texts are normalised to, if any."""
    if not tokenizer.is_fast:
        return False, ""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"].get("vocab")
    is_byte_level = "ByteLevel" in _types(state["pre_tokenizer"])
    whole = isinstance(vocabulary, dict) and vocabulary.keys() >= set(ByteLevel.alphabet())
    rewrites = _types(state["normalizer"]) - {"Sequence"}
    form = next(iter(rewrites)) if len(rewrites) == 1 else ""
    return is_byte_level and whole and (not rewrites or form in _FORMS), form


def _types(part: object) -> set[str]:
    """The types of a part of a tokenizer's file and of all parts inside it."""
    if isinstance(part, dict):
        inner = [_types(item) for item in part.values()]
        return {str(part["type"])}.union(*inner) if "type" in part else set().union(*inner)
    if isinstance(part, list):
        return set().union(*(_types(item) for item in part))
    return set()


def _difference(before: str, after: str) -> str:
    gone = [letter for letter in dict.fromkeys(before) if letter not in after]
    if gone:
        return "without " + " ".join(repr(letter)[1:-1] for letter in gone[:_SHOWN])
    return "with other white space or forms of characters"
