"""Settings of the llm workload: supervised fine-tuning of language models."""

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from workloads.config.sections import Model, Number, Profile, Section, Text, Whole

if TYPE_CHECKING:
    from workloads.plan.shapes import ModelShape

FORMAT_NAMES = Literal[
    "auto", "qa", "prompt_completion", "messages", "sharegpt", "alpaca", "text", "template"
]


@dataclass(frozen=True)
class Format:
    """A row format: its required and optional columns, and other names of them."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.needed + self.optional


# Order in which formats are tried where the profile names none.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "messages": Format(("messages",), ("tools", "system")),
        "sharegpt": Format(
            ("conversations",), ("tools", "system"), {"conversations": ("conversation",)}
        ),
        "prompt_completion": Format(
            ("prompt", "completion"), ("tools", "system"), {"completion": ("response",)}
        ),
        "qa": Format(("question", "answer"), ("system",)),
        "alpaca": Format(
            ("instruction", "output"),
            ("input", "system", "history"),
            {"output": ("response",), "input": ("context",)},
        ),
        "text": Format(("text",)),
    }
)


# Settings of a data section that shape a prompt; kept with an exported model.
PUT = (
    "format",
    "prompt",
    "prompt_prefix",
    "prompt_suffix",
    "answer_prefix",
    "system_prompt",
    "system_turn",
)


def _sources(value: Any) -> Any:
    """A list may hold plain names beside sources with settings of their own."""
    if not isinstance(value, list | tuple):
        return value
    return tuple({"source": item} if isinstance(item, str) else item for item in value)


class LlmSource(Section):
    """One of several sources; unset fields are those of the data section."""

    source: Text = Field(description="Hub id, or a local file, folder or pattern.")
    weight: Number = Field(
        1, gt=0, description="How often an epoch takes its rows: 2 is twice, 0.5 every second one."
    )
    subset: Text | None = Field(None, description="Configuration of a hub dataset.")
    revision: Text | None = Field(None, description="Branch, tag or commit on the hub.")
    split: Text | None = Field(None, description="Split to train on (hub datasets).")


class LlmData(Section):
    source: Annotated[Text | tuple[LlmSource, ...], BeforeValidator(_sources)] = Field(
        description="Hub id, or a local file, folder or pattern of files; or a list of these."
    )
    subset: Text | None = Field(None, description="Configuration of a hub dataset.")
    revision: Text | None = Field(None, description="Branch, tag or commit on the hub.")
    split: Text = Field("train", description="Split to train on (hub datasets).")
    eval_source: Text | None = Field(
        None, description="Held-out rows; default: `source` with `eval_split` or `eval_rows`."
    )
    eval_split: Text | None = Field(None, description="Held-out split (hub datasets).")
    eval_rows: Whole = Field(
        0, ge=0, description="Rows held out of the training rows where there is no held-out split."
    )
    encoding: Text = Field("utf-8", description="Encoding of local text files, such as cp932.")
    format: FORMAT_NAMES = Field(
        "auto", description="Format of rows; auto: by each row's columns, and reported."
    )
    columns: dict[str, Text] = Field(
        default_factory=dict,
        description="Our column name → the dataset's, where they differ.",
    )
    prompt: str | None = Field(
        None, description='Question of columns, such as "{instruction}\\n{input}" (template).'
    )
    answer: str | None = Field(
        None, description='Answer of columns, such as "{output}" (template).'
    )
    ignore: tuple[Text, ...] = Field(
        (), description="Columns, and fields of turns, that are left out on purpose."
    )
    prompt_prefix: str = Field("", description="Text before every question.")
    prompt_suffix: str = Field("", description="Text after every question.")
    answer_prefix: str = Field("", description="Text before every answer, given and not learnt.")
    system_prompt: str | None = Field(None, description="System turn before every question.")
    system_turn: Literal["auto", "keep", "merge"] = Field(
        "auto",
        description="merge: into the first question; auto: where the chat template takes none.",
    )
    max_length: Whole = Field(1024, ge=8, description="Longest row in tokens.")
    too_long: Literal["error", "truncate", "drop"] = Field(
        "error", description="What happens to longer rows; the count is reported."
    )
    packing: bool = Field(False, description="Put several rows into one sequence of max_length.")
    max_bad_rows: Whole | None = Field(
        None, ge=0, description="Bad rows to skip before stopping; default 10 or 0.1 %."
    )

    @model_validator(mode="after")
    def _known_columns(self) -> "LlmData":
        if (self.prompt is None) != (self.answer is None):
            raise ValueError("prompt and answer: a template needs both; set the other one too")
        if self.format == "template" and self.prompt is None:
            raise ValueError('format "template" needs prompt and answer, such as "{question}"')
        if self.prompt is not None and self.format not in ("auto", "template"):
            raise ValueError(f"prompt and answer belong to format template, not to {self.format!r}")
        named = template_columns(self.prompt or "") + template_columns(self.answer or "")
        if self.prompt is not None and not named:
            raise ValueError("prompt and answer: expected columns in braces, found none")
        formats = self.formats
        if not formats:
            known = {column for layout in FORMATS.values() for column in layout.columns}
            wrong = next((name for name in self.columns if name not in known), None)
            listed = "; ".join(
                f"{name}: {', '.join(form.columns)}" for name, form in FORMATS.items()
            )
            fix = f"remove {wrong!r}" if wrong else "keep those of one"
            raise ValueError(f"columns: expected columns of one format ({listed}); {fix}")
        (first, *_) = formats.values()
        unknown = [name for name in self.columns if name not in first.columns]
        if unknown:
            raise ValueError(
                f"columns: format {next(iter(formats))!r} has {', '.join(first.columns)}; "
                f"remove {unknown[0]!r}"
            )
        return self

    @property
    def formats(self) -> dict[str, Format]:
        """The formats that a row may have: the named one, or those with all mapped columns."""
        if self.prompt is not None:
            named = template_columns(self.prompt or "") + template_columns(self.answer or "")
            return {"template": Format(tuple(dict.fromkeys(named)), ("system",))}
        if self.format != "auto":
            return {self.format: FORMATS[self.format]}
        return {
            name: form for name, form in FORMATS.items() if set(self.columns) <= set(form.columns)
        }

    @property
    def sources(self) -> tuple[LlmSource, ...]:
        """All sources, each completed by the section."""
        if isinstance(self.source, str):
            shared = {"subset": self.subset, "revision": self.revision, "split": self.split}
            return (LlmSource.model_validate({"source": self.source, **shared}),)
        return tuple(
            source if source.split else source.model_copy(update={"split": self.split})
            for source in self.source
        )

    @property
    def named(self) -> str:
        """Names of all sources as text."""
        return ", ".join(source.source for source in self.sources)


def template_columns(template: str) -> tuple[str, ...]:
    """The columns in braces; ValueError for braces that hold anything but a name."""
    found = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.strip() or spec or conversion or any(mark in name for mark in ".["):
            raise ValueError(
                f"expected the name of a column in braces, found {{{name}}}; "
                "write {{ and }} for braces of the text"
            )
        found.append(name)
    return tuple(found)


class LlmEvaluation(Section):
    every_steps: Whole | None = Field(
        None, ge=1, description="Steps between losses on held-out rows; none: only at the end."
    )
    patience: Whole | None = Field(
        None, ge=1, description="Evaluations without a lower held-out loss before training ends."
    )
    samples: Whole = Field(
        0, ge=0, description="Held-out questions answered at each evaluation, kept in the run."
    )
    task: Literal["gsm8k"] | None = Field(None, description="Task to run when training is done.")
    before: bool = Field(False, description="Run the task on the untrained model too.")
    rows: Whole | None = Field(None, ge=1, description="Held-out rows to ask; none: all.")
    style: Literal["chat", "few_shot"] = Field("chat", description="Form of prompts.")
    shots: Whole = Field(5, ge=0, description="Examples before a question (few_shot).")
    batch_size: Annotated[Whole, Field(ge=1)] | Literal["auto"] = Field(
        16, description="Questions at a time; auto begins with many, and halves what does not fit."
    )
    max_new_tokens: Whole = Field(256, ge=1, description="Longest answer in tokens.")


class LlmModel(Model):
    add_tokens: tuple[Text, ...] = Field(
        (), description="New tokens for words; an adapter needs adapter.modules_to_save for them."
    )
    add_special_tokens: tuple[Text, ...] = Field(
        (), description="New special tokens, such as ends of turns, which answers do not show."
    )

    @model_validator(mode="after")
    def _different(self) -> "LlmModel":
        tokens = [*self.add_tokens, *self.add_special_tokens]
        if twice := [token for token in tokens if tokens.count(token) > 1]:
            raise ValueError(f"add_tokens: {twice[0]!r} is there twice; remove one")
        if blank := [token for token in tokens if token != token.strip()]:
            raise ValueError(f"add_tokens: expected no blanks around a token, found {blank[0]!r}")
        return self


class LlmConfig(Profile):
    learning_rates = MappingProxyType({"lora": 3e-4, "qlora": 2e-4})

    model: LlmModel
    data: LlmData
    evaluation: LlmEvaluation = LlmEvaluation()

    @model_validator(mode="after")
    def _grown_in_one_piece(self) -> "LlmConfig":
        adds = self.model.add_tokens or self.model.add_special_tokens
        if adds and self.adapter.method != "full" and self.parallel.strategy in ("fsdp2", "zero3"):
            raise ValueError(
                "model.add_tokens: an adapter whose embeddings have grown cannot be split over "
                "ranks; use parallel.strategy=ddp, or adapter.method=full"
            )
        return self

    def row_length(self, shape: "ModelShape") -> int:
        return self.data.max_length

    @property
    def packs(self) -> bool | None:
        return self.data.packing
