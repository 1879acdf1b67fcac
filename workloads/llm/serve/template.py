"""The chat template of a served model, which renders prompts as in training anywhere.

A server renders the template itself and knows nothing of a profile. What `Speaker.prompt` does in
Python (texts around a question, the system turn, the fixed date) is written into the template here.
"""

import json
import re

from transformers import PreTrainedTokenizerBase

from workloads.engine.pretrained.chat import FIXED
from workloads.errors import UserError
from workloads.llm.config import LlmData, template_columns
from workloads.llm.data.conversation import filled, merges
from workloads.llm.data.switches import PLAIN_TEMPLATE, Switches

_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_COLUMN = "\0"
# Every turn with the texts that training put around it. White space of the template is kept,
# since its first and last characters are only next to expressions.
_DRESSED = """\
{%- set put = namespace(turns=[]) -%}
{%- for turn in messages -%}
{%- if turn.role == "user" -%}
{%- set turn = dict(turn, content=ASKED) -%}
{%- elif turn.role == "assistant" and turn.content -%}
{%- set turn = dict(turn, content=ANSWER_PREFIX ~ turn.content) -%}
{%- endif -%}
{%- set put.turns = put.turns + [turn] -%}
{%- endfor -%}
"""
_WITH_SYSTEM = """\
{%- if put.turns[0].role != "system" -%}
{%- set put.turns = [{"role": "system", "content": SYSTEM}] + put.turns -%}
{%- endif -%}
"""
_MERGED = """\
{%- if put.turns[0].role == "system" -%}
{%- set system = put.turns[0].content | trim -%}
{%- set rest = namespace(turns=[], is_open=true) -%}
{%- for turn in put.turns[1:] -%}
{%- if rest.is_open and turn.role == "user" -%}
{%- set rest.is_open = false -%}
{%- if system -%}
{%- set turn = dict(turn, content=system ~ "\\n\\n" ~ turn.content) -%}
{%- endif -%}
{%- endif -%}
{%- set rest.turns = rest.turns + [turn] -%}
{%- endfor -%}
{%- if not rest.is_open -%}{%- set put.turns = rest.turns -%}{%- endif -%}
{%- endif -%}
"""


def served_template(tokenizer: PreTrainedTokenizerBase, data: LlmData) -> str:
    """A Jinja template that renders a conversation as `Speaker.prompt` does.

    data: the form of prompts in training. Raises UserError for a tokenizer with several templates
    and
    none of them the default.
    """
    switches = Switches(tokenizer)
    begin = f"{{%- set begin = {_literal(switches.begin)} -%}}"
    if data.format == "text":
        return f"{begin}{{{{ begin ~ messages[-1].content }}}}"
    if switches.own:
        head, template = _fixed(_own(tokenizer))
    else:
        joint = '"" if messages | length == 1 else "\\n"'
        joint = joint if data.format == "prompt_completion" else '"\\n"'
        head, template = f"{begin}{{%- set joint = {joint} -%}}", PLAIN_TEMPLATE
    asked, prefix = _asked(data), data.answer_prefix
    merging = merges(data, switches)
    if asked != "turn.content" or prefix or data.system_prompt or merging:
        head += _DRESSED.replace("ASKED", asked).replace("ANSWER_PREFIX", _literal(prefix))
        if data.system_prompt:
            head += _WITH_SYSTEM.replace("SYSTEM", _literal(data.system_prompt))
        head += _MERGED if merging else ""
        head += "{%- set messages = put.turns -%}"
    if prefix:
        # Jinja drops a template's last line break, which is no longer last here.
        template = template.removesuffix("\n")
        template += f"{{{{ {_literal(prefix)} if add_generation_prompt else '' }}}}"
    return f"{head}{{{{- '' }}}}{template}" if head else template


def _own(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(f"{tokenizer.name_or_path}: expected one chat template: {error}") from None


def _fixed(template: str) -> tuple[str, str]:
    """The date of training as a head and in the template, so that prompts are the same any day."""
    head = f"{{%- set date_string = {_literal(FIXED['date_string'])} -%}}"
    return (
        head if "date_string" in template else "",
        _NOW.sub(lambda found: _literal(FIXED["strftime_now"](found[2])), template),
    )


def _asked(data: LlmData) -> str:
    """The rendered question, as a Jinja expression of the turn."""
    asked = "turn.content"
    columns = template_columns(data.prompt or "")
    if len(columns) == 1:
        before, _, behind = filled(f"{data.prompt}", {columns[0]: _COLUMN}).partition(_COLUMN)
        asked = f"({_literal(before)} ~ turn.content ~ {_literal(behind)}) | trim"
    if data.prompt_prefix or data.prompt_suffix:
        asked = f"{_literal(data.prompt_prefix)} ~ ({asked}) ~ {_literal(data.prompt_suffix)}"
    return asked


def _literal(text: str) -> str:
    """A text as a Jinja literal, whose escapes are Python's and include JSON's."""
    return json.dumps(text, ensure_ascii=False)


__all__ = ["served_template"]
