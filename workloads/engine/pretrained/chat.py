"""Facts of a chat template, found by rendering it: how answers end, and where the date goes.

Training, export, evaluation and generation share them, so that generation stops at the token that
was learnt as the end of an answer.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from workloads.config.sections import Model
from workloads.errors import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig

PROBE = "Tatara"
# Some templates write today's date into every prompt. With a fixed one the same rows give the same
# tokens on every day and node; this is the date that those templates themselves fall back on.
_FIXED_NOW = datetime(2024, 7, 26)
FIXED_DATE = _FIXED_NOW.strftime("%d %b %Y")

# For every call of a template: `date_string` as Llama's have it, `strftime_now` as all others.
FIXED: dict[str, Any] = {"date_string": FIXED_DATE, "strftime_now": _FIXED_NOW.strftime}


def fixed(speaker: Any) -> dict[str, Any]:
    """The part of FIXED that the template reads: a processor takes others as its own settings."""
    template = str(getattr(speaker, "chat_template", None))
    return {name: value for name, value in FIXED.items() if name in template}


def chosen_template(model: Model, own: Any, forms: Mapping[str, str] | None = None) -> Any:
    """The chat template that a profile asks for, with its switches as defaults.

    own: the tokenizer's, one or several by name. forms: further ones by name. The tokenizer's
    template is exported with it, so that users render as training did. Raises UserError for an
    unknown template or switch, and where none of several is the default.
    """
    template = own
    if model.chat_template is not None:
        template = _named_template(model.chat_template, own, forms or {})
    elif isinstance(own, dict) and "default" not in own:
        raise UserError(
            f"{model.name}: expected a default among its chat templates, found "
            f"{', '.join(sorted(own))}; set model.chat_template to one of them"
        )
    return _switched(template, model.chat_template_kwargs)


def _named_template(wanted: str, own: Any, forms: Mapping[str, str]) -> str:
    known = {**forms, **(own if isinstance(own, dict) else {})}
    if wanted in known:
        return str(known[wanted])
    file = Path(wanted).expanduser()
    if file.is_file():
        return file.read_text(encoding="utf-8")
    names = "".join(f" or one of {', '.join(sorted(known))}" if known else "")
    raise UserError(f"model.chat_template: expected a Jinja file{names}, found {wanted!r}")


def _switched(template: Any, switches: Mapping[str, Any]) -> Any:
    """The template with defaults for switches that the caller does not set."""
    if not switches:
        return template
    if not isinstance(template, str):
        raise UserError(
            "model.chat_template_kwargs: expected one chat template to set them for, found "
            f"{'none' if template is None else 'several'}; set model.chat_template"
        )
    unknown = [name for name in switches if not re.search(rf"\b{re.escape(name)}\b", template)]
    if unknown:
        raise UserError(
            f"model.chat_template_kwargs: expected switches that the chat template reads, found "
            f"{unknown[0]!r}, which stands nowhere in it; correct or remove it"
        )
    heads = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in switches.items()
    ]
    return "".join(heads) + template


def _literal(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def answer_end(speaker: Any) -> str:
    """The special tokens with which the chat template ends an answer, as text; '' if it has none.

    speaker: a tokenizer, or a processor, whose template may want texts in parts.
    """
    tokenizer = getattr(speaker, "tokenizer", speaker)
    if getattr(speaker, "chat_template", None) is None and tokenizer.chat_template is None:
        return ""
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for content in (str, lambda text: [{"type": "text", "text": text}]):
        turns = [
            {"role": "user", "content": content("?")},
            {"role": "assistant", "content": content(PROBE)},
        ]
        try:
            text = str(speaker.apply_chat_template(turns, tokenize=False, **FIXED))
        except (TemplateError, TypeError, ValueError):
            continue
        if PROBE in text:
            tail = text.rpartition(PROBE)[2].rstrip()
            return tail if any(tail.endswith(token) for token in special) else ""
    return ""


def answer_end_ids(speaker: Any) -> list[int]:
    """The tokens that an answer is taught to end with: the template's, else the tokenizer's own."""
    tokenizer = getattr(speaker, "tokenizer", speaker)
    tail = answer_end(speaker)
    if not tail:
        return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return [int(token) for token in tokenizer(tail, add_special_tokens=False)["input_ids"]]


def stop_ids(speaker: Any, generation: "GenerationConfig | None" = None) -> list[int]:
    """Every token that generation stops at: the model's own, the tokenizer's, the template's."""
    tokenizer = getattr(speaker, "tokenizer", speaker)
    own = generation.eos_token_id if generation is not None else None
    found = [own] if isinstance(own, int) else list(own or [])
    known = set(tokenizer.added_tokens_decoder)
    learnt = [token for token in answer_end_ids(speaker) if token in known][:1]
    eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    return list(dict.fromkeys([*found, *eos, *learnt]))


def with_stops(speaker: Any, generation: "GenerationConfig | None") -> "GenerationConfig":
    """A copy of a model's generation config that stops where its answers are taught to end."""
    from transformers import GenerationConfig

    tokenizer = getattr(speaker, "tokenizer", speaker)
    ends: Sequence[int] = stop_ids(speaker, generation)
    if generation is None:
        made = GenerationConfig(bos_token_id=tokenizer.bos_token_id)
        made.pad_token_id = tokenizer.pad_token_id
    else:
        made = copy.deepcopy(generation)
    made.eos_token_id = ends[0] if len(ends) == 1 else list(ends) or None
    return made
