"""Tokenises text, with a label for every token of an answer and for no other.

A row is encoded once, as a whole, and its answers are located by their offsets in the text. That is
right only if the tokens of the prompt are those of the prompt alone, which a model is given later.
Where a token spans the end of the prompt, or the text behind it
changes how it is cut, the row is encoded in parts instead, so that training and asking agree.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from workloads.llm.data.back import Back
from workloads.llm.data.template import Rendered

IGNORED = -100  # a label that no loss counts
Ints = NDArray[np.int32]

# Ends of prompts mostly are the same few markers; longer texts are whole, different prompts.
_LONGEST_KEPT = 64


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row: token ids and labels of the same length."""

    ids: Ints
    labels: Ints
    # Encoded in parts, because a token would span the end of the prompt.
    parted: bool = False
    # Remarks on the row, by a key of `report.REMARKS`, with a detail.
    remarks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Whole:
    """A row encoded as a whole: its answers in tokens, and the ends of prompts to check."""

    ids: Ints
    spans: list[tuple[int, int]]
    ends: list[tuple[str, list[int]]]  # from the last special token on: text, and tokens here
    fits: bool  # tokens begin and end where the answers do


class Encoder:
    """Encodes rendered rows with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._fast = _bare(tokenizer) if tokenizer.is_fast else None
        self._special = frozenset(tokenizer.added_tokens_decoder)
        self._known_ends: dict[str, list[int]] = {}
        self._back = Back(tokenizer)

    def encode(self, rows: Sequence[Rendered]) -> list[Tokens]:
        """The tokens of each row; the text holds its special tokens already.

        Rows whose text cannot be decoded from their tokens get a remark.
        """
        found = self._encoded(rows)
        lost = self._back.lost([row.text for row in rows], [tokens.ids for tokens in found])
        for place, detail in lost.items():
            found[place] = replace(found[place], remarks=(("lossy", detail),))
        return found

    def _encoded(self, rows: Sequence[Rendered]) -> list[Tokens]:
        if self._fast is None:
            return [self._in_parts(row) for row in rows]
        encodings = self._fast.encode_batch([row.text for row in rows], add_special_tokens=False)
        wholes = [self._whole(row, encoding) for row, encoding in zip(rows, encodings, strict=True)]
        alone = self._encoded_alone([text for whole in wholes for text, _ in whole.ends])
        return [
            Tokens(whole.ids, _labels(whole.ids, whole.spans))
            if whole.fits and all(alone[text] == ids for text, ids in whole.ends)
            else self._in_parts(row)
            for row, whole in zip(rows, wholes, strict=True)
        ]

    def _whole(self, row: Rendered, encoding: Encoding) -> "_Whole":
        ids = encoding.ids
        spans, ends = [], []
        for begin, end in row.spans:
            span = _token_span(encoding, len(row.text), begin, end)
            if span is None:
                return _Whole(np.empty(0, np.int32), [], [], fits=False)
            first = self._last_special(ids, span[0])
            cut = _chars(encoding, first)[0] if first else 0
            spans.append(span)
            ends.append((row.text[cut:begin], ids[first : span[0]]))
        return _Whole(np.array(ids, dtype=np.int32), spans, ends, fits=True)

    def _last_special(self, ids: list[int], start: int) -> int:
        """Start of the last special token before `start`; 0 where there is none.

        A special token splits the text: nothing before it depends on what follows.
        """
        for place in range(start - 1, 0, -1):
            if ids[place] in self._special:
                return place
        return 0

    def _encoded_alone(self, texts: list[str]) -> dict[str, list[int]]:
        assert self._fast is not None
        known = self._known_ends
        fresh = [text for text in dict.fromkeys(texts) if text not in known]
        encodings = self._fast.encode_batch(fresh, add_special_tokens=False) if fresh else []
        found = {text: encoding.ids for text, encoding in zip(fresh, encodings, strict=True)}
        known |= {text: ids for text, ids in found.items() if len(text) <= _LONGEST_KEPT}
        return known | found

    def _in_parts(self, row: Rendered) -> Tokens:
        """Encode the text between the ends of the spans piece by piece."""
        ids: list[int] = []
        labels: list[int] = []
        done = 0
        for begin, end in (*row.spans, (len(row.text), len(row.text))):
            given, learnt = self._plain(row.text[done:begin]), self._plain(row.text[begin:end])
            ids += given + learnt
            labels += [IGNORED] * len(given) + learnt
            done = end
        return Tokens(np.array(ids, np.int32), np.array(labels, np.int32), self._fast is not None)

    def _plain(self, text: str) -> list[int]:
        if not text:
            return []
        if self._fast is not None:
            ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
            return ids
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _bare(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy without truncation, padding and special tokens, whose offsets keep leading spaces."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"truncation": None, "padding": None, "post_processor": None}
    return Tokenizer.from_str(json.dumps(state))


def _token_span(encoding: Encoding, length: int, begin: int, end: int) -> tuple[int, int] | None:
    """Token span of the characters from begin to end; None where no token starts or ends there."""
    first = _token_from(encoding, length, begin)
    behind = _token_from(encoding, length, end)
    if first >= behind:
        return None
    if _chars(encoding, first)[0] < begin or not _closed(encoding, first, begin):
        return None
    return (first, behind) if _closed(encoding, behind, end) else None


def _closed(encoding: Encoding, token: int, place: int) -> bool:
    """Whether all tokens before `token` end at `place` or before."""
    return token == 0 or _chars(encoding, token - 1)[1] <= place


def _chars(encoding: Encoding, token: int) -> tuple[int, int]:
    found = encoding.token_to_chars(token)
    assert found is not None  # only tokens put around a text have no offsets
    return found


def _token_from(encoding: Encoding, length: int, place: int) -> int:
    """The first token of the text from `place` on; some tokenizers leave out white space."""
    while place < length:
        token = encoding.char_to_token(place)
        if token is not None:
            return int(token)
        place += 1
    return len(encoding)


def _labels(ids: Ints, spans: Sequence[tuple[int, int]]) -> Ints:
    labels = np.full(len(ids), IGNORED, dtype=np.int32)
    for first, behind in spans:
        labels[first:behind] = ids[first:behind]
    return labels
