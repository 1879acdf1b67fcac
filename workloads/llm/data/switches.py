"""Facts of one chat template, found by rendering it: markers, end, supported turns."""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from workloads.engine.pretrained.chat import FIXED, PROBE, answer_end
from workloads.llm.data.turns import Turn

# Errors of a template that does not accept a conversation.
REFUSALS = (TemplateError, TypeError, ValueError)
# For tokenizers without a chat template: questions as they are, each answer with its end token.
PLAIN_TEMPLATE = (
    "{{ begin }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% elif message['role'] == 'user' %}{{ joint }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)
# The look of other models' special tokens, which this tokenizer would cut into pieces.
MARKER = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:eos|bos|pad|start_of_turn|end_of_turn|NL)>|\[/?INST\]"
)
SIGNS = ("<|", "s>", "INST]", "_of_turn>", "<pad>", "<NL>")  # one of them is in every marker
_CALL = {"type": "function", "function": {"name": PROBE, "arguments": {PROBE: PROBE}}}


class Switches:
    """A tokenizer's chat template and its facts, each found once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.own = tokenizer.chat_template is not None

    def render(
        self,
        talks: list[list[Turn]],
        asks: bool,
        tools: Sequence[Any] | None = None,
        joint: str = "\n",
    ) -> list[str]:
        """Render conversations; asks: with the generation prompt.

        joint: text between a question and its answer without a template.
        """
        if not talks:
            return []
        if self.arguments_as_text:
            talks = [[_with_text_arguments(turn) for turn in turns] for turns in talks]
        extra = dict(FIXED)
        if not self.own:
            extra = {"chat_template": PLAIN_TEMPLATE, "begin": self.begin, "joint": joint}
        if tools:
            extra["tools"] = list(tools)
        rendered: list[str] = self.tokenizer.apply_chat_template(
            talks, tokenize=False, add_generation_prompt=asks, **extra
        )
        return rendered

    def tried(
        self, turns: list[Turn], asks: bool = True, tools: Sequence[Any] | None = None
    ) -> str | None:
        """One conversation as text; None where the template refuses it."""
        try:
            return self.render([turns], asks, tools)[0]
        except REFUSALS:
            return None

    @cached_property
    def writes_text(self) -> bool:
        """Whether plain text content is rendered; some templates for images drop it."""
        text = self.tried([{"role": "user", "content": PROBE}])
        return text is None or PROBE in text  # each row reports its own error

    @cached_property
    def end(self) -> str:
        """The tokens that end an answer in the template; empty if there are none."""
        if self.own:
            return answer_end(self.tokenizer)
        return self.tokenizer.eos_token or ""

    @cached_property
    def special(self) -> list[str]:
        return [token.content for token in self.tokenizer.added_tokens_decoder.values()]

    @cached_property
    def markers(self) -> set[str]:
        """Texts of special tokens, and of similar markers that the template itself writes."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
        system = {"role": "system", "content": PROBE}
        texts = [self.tried(turns), self.tried([system, *turns]), self.tried(turns, False)]
        return set(self.special).union(*(MARKER.findall(text) for text in texts if text))

    @cached_property
    def opening(self) -> str:
        """The generation prompt of the template; empty where that is not clear."""
        turns: list[Turn] = [{"role": "user", "content": PROBE}]
        closed, opened = self.tried(turns, False), self.tried(turns)
        if closed is None or opened is None:
            return ""
        return opened.removeprefix(closed) if opened.startswith(closed) else ""

    @cached_property
    def begin(self) -> str:
        """The token that the tokenizer puts before every text, if any."""
        begin = self.tokenizer.bos_token
        if begin is None:
            return ""
        ids = self.tokenizer(PROBE)["input_ids"]
        return begin if ids and ids[0] == self.tokenizer.bos_token_id else ""

    @cached_property
    def newline(self) -> str:
        """Rendering of a line break inside a turn; some models have a token for it."""
        text = self.tried([{"role": "user", "content": f"{PROBE}\n{PROBE}"}])
        between = (text or "").split(PROBE)[1:-1]
        return between[0] if len(between) == 1 and between[0] else "\n"

    @cached_property
    def takes_system(self) -> bool:
        """Whether system turns are rendered."""
        turns = [{"role": "system", "content": PROBE}, {"role": "user", "content": "?"}]
        text = self.tried(turns)
        return text is not None and PROBE in text

    @cached_property
    def takes_input(self) -> bool:
        """Whether the template renders an input beside a question, as Alpaca's forms do."""
        text = self.tried([{"role": "user", "content": "?", "input": PROBE}])
        return text is not None and PROBE in text

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template renders tools that a model may call."""
        inner = {"name": PROBE, "description": PROBE, "parameters": {"type": "object"}}
        tools = [{"type": "function", "function": inner}]
        text = self.tried([{"role": "user", "content": "?"}], True, tools)
        return text is not None and PROBE in text

    @cached_property
    def arguments_as_text(self) -> bool:
        """Whether arguments of a call must be JSON text: some templates concatenate texts."""
        turns: list[Turn] = [{"role": "user", "content": "?"}]
        call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        fixed: dict[str, Any] = {"tokenize": False, **FIXED}
        if not self.own:
            return False
        try:
            self.tokenizer.apply_chat_template([*turns, call], **fixed)
        except REFUSALS:
            try:
                self.tokenizer.apply_chat_template([*turns, _with_text_arguments(call)], **fixed)
            except REFUSALS:
                return False
            return True
        return False


def _with_text_arguments(turn: Turn) -> Turn:
    if not turn.get("tool_calls"):
        return turn
    calls = []
    for call in turn["tool_calls"]:
        inner = dict(call["function"])
        if not isinstance(inner["arguments"], str):
            inner["arguments"] = json.dumps(inner["arguments"], ensure_ascii=False)
        calls.append({**call, "function": inner})
    return {**turn, "tool_calls": calls}
