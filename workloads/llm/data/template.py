"""Renders rows as text, with the characters that the model is to learn.

The model's own chat template renders a row twice, once in full and once up to the question with
the generation prompt behind it. The text beyond that prompt is the answer, with the token that ends
it. A template's markers are never guessed; `switches.py` finds them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from workloads.engine.pretrained.chat import FIXED_DATE
from workloads.llm.config import LlmData
from workloads.llm.data.columns import UNFIT, format_of
from workloads.llm.data.conversation import Conversation, conversation_of
from workloads.llm.data.guard import TemplateGuard
from workloads.llm.data.switches import MARKER, REFUSALS, SIGNS, Switches
from workloads.llm.data.turns import RowError, Turn, said

Row = Mapping[str, Any]

_OPENED = re.compile(r"(<[^<>\s]+>)(\s*)\Z")
_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>(\s*)\Z")
_LONGEST_TAG = 40  # characters of a tag with white space behind it
_COMPARED = 4  # conversations of a batch whose earlier answers are located in both ways


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text.

    `spans`: begin and end of learnt parts, in characters. remarks: by a key of `report.REMARKS`,
    with a detail.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    # The template renders an answered question differently from an open one.
    rebuilt: bool = False
    remarks: tuple[tuple[str, str], ...] = ()


class Template:
    """Renders the rows of a dataset for one tokenizer. Holds no state besides its settings."""

    def __init__(self, data: LlmData, tokenizer: PreTrainedTokenizerBase) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.switches = Switches(tokenizer)
        self._guard = TemplateGuard(self.switches)

    def notes(self) -> list[str]:
        """Remarks on how rows are rendered."""
        notes = []
        if not self.switches.own and self.data.format != "text":
            notes.append(
                "the tokenizer has no chat template: rows are plain question, answer, end token"
            )
        if self.tokenizer.eos_token is None:
            notes.append("the tokenizer has no end token: answers have no end to learn")
        return notes

    def prompt(self, row: Row) -> str:
        """The prompt of a row as text, special tokens included.

        Raises RowError where the row is unfit.
        """
        talk = conversation_of(row, self.data, self.switches)
        turns = talk.turns[: talk.answers[-1]]
        try:
            prompt = self.switches.render([turns], True, talk.tools, talk.joint)[0]
        except REFUSALS as error:
            raise _refused(error) from error
        return prompt + self.data.answer_prefix

    def last_pair(self, row: Row) -> tuple[str, str]:
        """The last question of a row and its answer, for people.

        Raises RowError for an unfit row.
        """
        talk = conversation_of(row, self.data, self.switches)
        asked = [turn for turn in talk.turns[: talk.answers[-1]] if turn["role"] == "user"]
        return said(asked[-1]) if asked else "", said(talk.turns[talk.answers[-1]])

    def render(self, rows: Sequence[Row]) -> list[Rendered | RowError]:
        """Each row as text, or its error."""
        found: list[Rendered | RowError | None] = [None] * len(rows)
        groups: dict[str, list[tuple[int, Conversation]]] = {}
        for place, row in enumerate(rows):
            try:
                if UNFIT in row:
                    raise RowError(row[UNFIT])
                if format_of(row, self.data) == "text":
                    found[place] = self._text(row["text"])
                else:
                    talk = conversation_of(row, self.data, self.switches)
                    kind = talk.joint if talk.tools is None else repr((talk.joint, talk.tools))
                    groups.setdefault(kind, []).append((place, talk))
            except RowError as error:
                found[place] = error
        for group in groups.values():
            done = self._group([talk for _, talk in group])
            for (place, _), rendered in zip(group, done, strict=True):
                found[place] = rendered
        return [item for item in found if item is not None]

    def _text(self, text: Any) -> Rendered:
        if not isinstance(text, str) or not text.strip():
            raise RowError("the text is empty")
        begin, end = self.switches.begin, self.tokenizer.eos_token or ""
        # One beginning and one end, whatever white space the data has around its own.
        text = text.rstrip() if end and text.rstrip().endswith(end) else text + end
        text = text.lstrip() if begin and text.lstrip().startswith(begin) else begin + text
        return Rendered(text, ((0, len(text)),), remarks=tuple(self._foreign([text])))

    def _group(self, talks: list[Conversation]) -> Iterable[Rendered | RowError]:
        """Render conversations with the same tools, at once if the template accepts all."""
        try:
            rendered = self._talks(talks)
        except REFUSALS:
            return [self._alone(talk) for talk in talks]
        return [_caught(self._checked, pair) for pair in zip(talks, rendered, strict=True)]

    def _alone(self, talk: Conversation) -> Rendered | RowError:
        """Render one conversation, after rendering many has failed."""
        try:
            return self._checked((talk, self._talks([talk])[0]))
        except RowError as error:
            return error
        except REFUSALS as error:
            return _refused(error)

    def _checked(self, pair: tuple[Conversation, Rendered]) -> Rendered:
        """The row with its remarks. Raises RowError where a turn's text is missing."""
        talk, rendered = pair
        more = [*talk.remarks, *self._guard.check(talk, rendered.text)]
        more += self._foreign([turn["content"] for turn in talk.turns])
        return replace(rendered, remarks=(*rendered.remarks, *more)) if more else rendered

    def _foreign(self, texts: Sequence[str]) -> list[tuple[str, str]]:
        """What looks like a special token in a row's own texts, and is none of this tokenizer."""
        # Looking for what they have in common is many times faster than the pattern.
        whole = "\n".join(texts)
        if not any([sign in whole for sign in SIGNS]):
            return []
        found = {marker for text in texts for marker in MARKER.findall(text)}
        return [("foreign", marker) for marker in sorted(found - self.switches.markers)]

    def _talks(self, talks: Sequence[Conversation]) -> list[Rendered]:
        more = talks[0].tools, talks[0].joint
        whole = self.switches.render([talk.turns for talk in talks], False, *more)
        asked = [talk.turns[: talk.answers[-1]] for talk in talks]
        prompts = self.switches.render(asked, True, *more)
        scans = self._may_scan(talks, whole)
        return [
            self._rendered(talk, text, prompt, scans)
            for talk, text, prompt in zip(talks, whole, prompts, strict=True)
        ]

    def _may_scan(self, talks: Sequence[Conversation], whole: Sequence[str]) -> bool:
        """Whether searching for earlier answers equals rendering each prompt, on a few rows."""
        pairs = zip(talks, whole, strict=True)
        some = [pair for pair in pairs if len(pair[0].answers) > 1][:_COMPARED]
        return all(self._scanned(*pair) == self._asked(*pair) for pair in some)

    def _rendered(self, talk: Conversation, text: str, prompt: str, scans: bool) -> Rendered:
        follows = text.startswith(prompt)
        last = talk.answers[-1]
        spans = self._all_spans(talk, text, prompt, scans) if follows else None
        if spans is None and follows:
            # Then only the last answer is learnt, as the template writes it.
            spans = self._spans(replace(talk, answers=[last]), text, [len(prompt)])
            rebuilt = True
        else:
            rebuilt = False
        thought = _THOUGHT.search(prompt[-_LONGEST_TAG:])
        if spans is not None and not (thought and not _closes(text[spans[-1][0] :], thought[1])):
            return self._cut(text, spans, rebuilt)
        # After the prompt exactly as a model will get it.
        answer = _behind_opened_tag(prompt, self._written(talk.turns[last]))
        remarks = []
        if thought and not _closes(answer, thought[1]):
            answer = f"\n</{thought[1]}>\n\n{answer}" if thought[2] else f"</{thought[1]}>{answer}"
            remarks = [("closed", f"</{thought[1]}>")]
        text = prompt + answer + self.switches.end
        made = self._cut(text, [(len(prompt), len(text))], rebuilt=True)
        return replace(made, remarks=tuple(remarks))

    def _all_spans(
        self, talk: Conversation, text: str, prompt: str, scans: bool
    ) -> list[tuple[int, int]] | None:
        earlier = (self._scanned(talk, text) if scans else None) or self._asked(talk, text)
        return None if earlier is None else self._spans(talk, text, [*earlier, len(prompt)])

    def _cut(self, text: str, spans: list[tuple[int, int]], rebuilt: bool = False) -> Rendered:
        """The text up to the end of the last answer, with an end token if it has none."""
        text = self._ended(text[: spans[-1][1]], spans)
        if self.data.answer_prefix:
            spans = [(self._behind_prefix(text, *span), span[1]) for span in spans]
        return Rendered(text, tuple(spans), rebuilt)

    def _behind_prefix(self, text: str, begin: int, end: int) -> int:
        """Where learning an answer begins: after the profile's prefix of answers."""
        prefix = self.data.answer_prefix
        found = text.find(prefix.strip(), begin, end)
        if found < 0:
            return begin
        found += len(prefix.strip())
        tail = prefix[len(prefix.rstrip()) :]
        return found + len(tail) if text.startswith(tail, found) else found

    def _asked(self, talk: Conversation, text: str) -> list[int] | None:
        """Starts of all answers but the last, by rendering the prompt of each.

        None where the full text does not begin with those prompts. The time is quadratic in turns.
        """
        earlier = [talk.turns[:answer] for answer in talk.answers[:-1]]
        prompts = self.switches.render(earlier, True, talk.tools, talk.joint)
        held = all(text.startswith(prompt) for prompt in prompts)
        return [len(prompt) for prompt in prompts] if held else None

    def _scanned(self, talk: Conversation, text: str) -> list[int] | None:
        """The same by searching the text; None where that fails."""
        starts = []
        place = 0
        opening = self.switches.opening
        for number, turn in enumerate(talk.turns[: talk.answers[-1]]):
            words = self._written(turn)
            if number not in talk.answers:
                found = text.find(words, place)
                place = place if found < 0 else found + len(words)
                continue
            found = text.find(opening + words, place) if opening else -1
            if found < 0:
                return None
            starts.append(found + len(opening))
            place = starts[-1] + len(words)
        return starts

    def _spans(
        self, talk: Conversation, text: str, starts: list[int]
    ) -> list[tuple[int, int]] | None:
        """Begin and end of the answers in the full text; None where one is missing."""
        spans = []
        for answer, start, limit in zip(
            talk.answers, starts, [*starts[1:], len(text)], strict=True
        ):
            words = self._written(talk.turns[answer])
            found = text.find(words, start, limit)
            if found < 0:
                return None
            end = self._closed(text, found + len(words), limit)
            if end is None and answer == talk.answers[-1]:
                end = len(text)
            elif end is None and talk.turns[answer].get("tool_calls"):
                # A call follows the content, in the template's own form.
                turns = [talk.turns[: answer + 1]]
                whole = self.switches.render(turns, False, talk.tools, talk.joint)[0].rstrip()
                if not text.startswith(whole) or len(whole) <= start:
                    return None
                end = len(whole)
            elif end is None:
                end = found + len(words)
            spans.append((start, end))
        return spans

    def _written(self, turn: Turn) -> str:
        """A turn's content, with line breaks as the template writes them."""
        words = said(turn)
        return (
            words if self.switches.newline == "\n" else words.replace("\n", self.switches.newline)
        )

    def _closed(self, text: str, end: int, limit: int) -> int | None:
        """End of the marker that closes an answer ending at `end`; None where there is none."""
        closing = self.switches.end
        marker = text.find(closing, end, limit) if closing else -1
        if marker >= 0:
            return marker + len(closing)
        # Some templates close the last answer differently, or twice.
        place = limit - len(text[end:limit].lstrip())
        sizes = [len(token) for token in self.switches.special if text.startswith(token, place)]
        return place + max(sizes) if sizes else None

    def _ended(self, text: str, spans: list[tuple[int, int]]) -> str:
        """The text with an end token, if the template writes none after the last answer."""
        end = self.tokenizer.eos_token
        if self.switches.end or not end or text.endswith(end):
            return text
        spans[-1] = (spans[-1][0], len(text) + len(end))
        return text + end


def _caught(make: Callable[[Any], Rendered], item: Any) -> Rendered | RowError:
    try:
        return make(item)
    except RowError as error:
        return error


def _refused(error: Exception) -> RowError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return RowError(f"the chat template refuses it: {reason[0]}")


def _closes(answer: str, tag: str) -> bool:
    return f"</{tag}>" in answer


def _behind_opened_tag(prompt: str, words: str) -> str:
    """An answer without the tag, such as <think>, that its prompt has already opened."""
    opened = _OPENED.search(prompt)
    if opened is None or not words.startswith(opened[1]):
        return words
    return words.removeprefix(opened[1]).removeprefix(opened[2])


__all__ = ["FIXED_DATE", "Rendered", "RowError", "Template"]
