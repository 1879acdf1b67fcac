"""Settings of the llm workload: supervised fine-tuning of language models."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from workloads.config.sections import Profile, Section, Text, Whole

if TYPE_CHECKING:
    from workloads.plan.shapes import ModelShape

FORMATS = Literal["qa", "prompt_completion", "messages", "text"]
# The columns that each format needs, and what they are called unless the profile maps them.
COLUMNS: dict[str, tuple[str, ...]] = {
    "qa": ("question", "answer"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}


class LlmData(Section):
    source: Text = Field(description="Hub id, or a local JSONL, Parquet or CSV file or folder.")
    subset: Text | None = Field(None, description="Configuration of a hub data set.")
    revision: Text | None = Field(None, description="Branch, tag or commit on the hub.")
    split: Text = Field("train", description="Split to train on (hub data sets).")
    eval_source: Text | None = Field(
        None, description="Held-out rows; default: `source` with `eval_split` or `eval_rows`."
    )
    eval_split: Text | None = Field(None, description="Held-out split (hub data sets).")
    eval_rows: Whole = Field(
        0, ge=0, description="Rows held out of the training rows where there is no held-out split."
    )
    format: FORMATS = Field("qa", description="What a row holds.")
    columns: dict[str, Text] = Field(
        default_factory=dict,
        description="Our column name → the data set's, where they differ.",
    )
    prompt_suffix: str = Field("", description="Text after every question.")
    system_prompt: str | None = Field(None, description="System turn before every question.")
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
        needed = COLUMNS[self.format]
        unknown = [name for name in self.columns if name not in needed]
        if unknown:
            raise ValueError(
                f"columns: format {self.format!r} has {', '.join(needed)}; remove {unknown[0]!r}"
            )
        return self

    def column(self, name: str) -> str:
        """The data set's name of one of our columns."""
        return self.columns.get(name, name)


class LlmEvaluation(Section):
    every_steps: Whole | None = Field(
        None, ge=1, description="Steps between losses on held-out rows; none: only at the end."
    )
    task: Literal["gsm8k"] | None = Field(None, description="Task to run when training is done.")
    before: bool = Field(False, description="Run the task on the untrained model too.")
    rows: Whole | None = Field(None, ge=1, description="Held-out rows to ask; none: all.")
    style: Literal["chat", "few_shot"] = Field("chat", description="How questions are put.")
    shots: Whole = Field(5, ge=0, description="Examples before a question (few_shot).")
    batch_size: Whole = Field(16, ge=1, description="Questions at a time.")
    max_new_tokens: Whole = Field(256, ge=1, description="Longest answer in tokens.")


class LlmConfig(Profile):
    data: LlmData
    evaluation: LlmEvaluation = LlmEvaluation()

    def row_length(self, shape: "ModelShape") -> int:
        return self.data.max_length
