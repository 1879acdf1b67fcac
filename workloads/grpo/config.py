"""Settings of the grpo workload: GRPO with verifiable rewards, and the supervised stage before it.

Works for language models and for vision-language models; the model's own config says which it is.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from workloads.config.sections import Model, Number, Profile, Section, Text, Whole
from workloads.errors import UserError
from workloads.grpo.objective import Grpo

if TYPE_CHECKING:
    from workloads.plan.shapes import ModelShape

GENERATED = "scenes"


class Scenes(Section):
    """Drawn CLEVR-like scenes, where `data.source` is `scenes`."""

    count: Whole = Field(1000, ge=1, description="Scenes to draw.")
    seed: Whole = Field(0, ge=0, description="Seed of the scenes.")
    palette: Literal["A", "B"] = Field("A", description="Colours by CoGenT's condition.")
    least: Whole = Field(3, ge=1, le=10, description="Fewest objects in a scene.")
    most: Whole = Field(10, ge=1, le=10, description="Most objects in a scene.")
    width: Whole = Field(240, ge=16, description="Width of an image in pixels.")
    height: Whole = Field(160, ge=16, description="Height of an image in pixels.")
    questions: Literal["all", "colour", "shape", "mixed"] = Field(
        "all", description="Count all items, those of one colour or shape, or any of these."
    )
    sizes: tuple[Literal["small", "large"], ...] = Field(
        ("small", "large"), min_length=1, description="Sizes of the objects."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Scenes":
        if self.least > self.most:
            raise ValueError(f"least is {self.least}, which is more than most, {self.most}")
        return self


class GrpoData(Section):
    source: Text = Field(
        description="Hub id, local file or folder (imagefolder, Parquet, JSONL), or `scenes`."
    )
    revision: Text | None = Field(None, description="Branch, tag or commit on the hub.")
    split: Text | None = Field(None, description="Train on the files of this split only.")
    image_root: Text | None = Field(
        None, description="Folder that relative image paths start from."
    )
    columns: dict[Literal["image", "problem", "solution"], Text] = Field(
        default_factory=dict, description="Our column name → the dataset's, where they differ."
    )
    prompt: Literal["r1v", "geoqa", "superclevr"] = Field(
        "r1v", description="Wording around a question with an image; text only takes R1's system."
    )
    prompt_template: str | None = Field(
        None,
        description="Your own wording in place of `prompt`, for every row; {question} stands for "
        "the row's, and <image> in it for where images stand.",
    )
    system_prompt: str | None = Field(
        None, description="Your own system prompt, for rows that bring none."
    )
    rows: Whole | None = Field(None, ge=1, description="Use only the first rows, this many.")
    too_long: Literal["error", "drop"] = Field(
        "error", description="What happens to rows that do not fit the limits; they are named."
    )
    max_bad_rows: Whole = Field(10, ge=0, description="Unreadable rows to skip before stopping.")
    pictures: Literal["own", "shuffled", "grey"] = Field(
        "own",
        description="Images of training rows: their own, another row's, or plain grey. "
        "Without their own only the form of answers can be learnt. Held-out rows keep theirs.",
    )
    scenes: Scenes = Scenes()

    @model_validator(mode="after")
    def _asks_the_question(self) -> "GrpoData":
        if self.prompt_template is not None and "{question}" not in self.prompt_template:
            raise ValueError(
                "prompt_template: expected {question} in it, which stands for the row's own"
            )
        return self


class Reward(Section):
    name: Text = Field(
        description="accuracy_extracted, accuracy, format, format_tolerant, a plug-in as "
        "module:function, a reward model as model:NAME, or the address of a service, http://…"
    )
    weight: Number = Field(1.0, description="Share in the sum.")

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.weight:g} x {self.name}"

    __repr__ = __str__


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Rewards(Section):
    """A list in a profile, `rewards: [format]`, stands for `functions`."""

    list_field = "functions"

    functions: tuple[Annotated[Reward, BeforeValidator(_named)], ...] = Field(
        (Reward(name="accuracy_extracted"), Reward(name="format")),
        description="Rewards, each a name or {name, weight}; their weighted sum counts. None where "
        "tools.environment brings its own.",
    )
    on_error: Literal["stop", "abstain", "zero"] = Field(
        "stop",
        description="A reward that fails: save the last good step and stop, leave it out of the "
        "sum for those completions, or count it as 0.",
    )
    step_seconds: Number = Field(
        300,
        gt=0,
        description="Longest time that comparing one batch of answers may take; what is left "
        "then counts as 0.",
    )

    @model_validator(mode="after")
    def _different(self) -> "Rewards":
        names = [reward.name for reward in self.functions]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]!r} is there twice; give it one weight instead")
        if self.functions and not any(reward.weight for reward in self.functions):
            raise ValueError("every weight is 0, so that no completion earns anything; raise one")
        return self


class Tools(Section):
    """A list in a profile, `tools: ["module:function"]`, stands for `functions`."""

    list_field = "functions"

    functions: tuple[Text, ...] = Field(
        (),
        description="Functions that the model may call, each as module:function, with type hints "
        "and a docstring that names its arguments.",
    )
    environment: Text | None = Field(
        None,
        description="A class as module:Class with `reset`, whose other methods are tools; one "
        "instance a completion. Its get_reward, if it has one, counts beside the rewards.",
    )
    max_rounds: Whole | None = Field(
        None, ge=1, description="Rounds of calls in a completion; none: until it is full."
    )

    @property
    def used(self) -> bool:
        """Whether any tool or environment is set."""
        return bool(self.functions or self.environment)


class Generation(Section):
    engine: Literal["transformers", "vllm_colocate", "vllm_server"] = Field(
        "transformers", description="Engine that generates the completions."
    )
    gpu_memory_utilization: Number = Field(
        0.3, gt=0, lt=1, description="Share of the GPU for vLLM (vllm_colocate)."
    )
    sleep_level: Whole = Field(
        1,
        ge=0,
        le=2,
        description="vLLM between rollouts (vllm_colocate): 0 stays, 1 moves its weights to the "
        "host, 2 drops them, which vision models do not survive.",
    )
    tensor_parallel: Whole = Field(1, ge=1, description="GPUs of one engine (vllm_colocate).")
    max_model_length: Whole | None = Field(
        None, ge=16, description="Longest sequence of the engine; none: prompt and completion."
    )
    host: Text = Field("127.0.0.1", description="Address of the engine (vllm_server).")
    port: Whole = Field(8000, ge=1, le=65535, description="HTTP port of the engine (vllm_server).")
    group_port: Whole = Field(
        51216, ge=1024, le=65535, description="Port that weights are sent over (vllm_server)."
    )
    start_timeout: Number = Field(
        240, gt=0, description="Seconds to wait for the engine to come up (vllm_server)."
    )
    vllm_model_impl: Literal["auto", "vllm", "transformers"] = Field(
        "auto", description="Implementation of the model that vLLM uses."
    )
    vllm_structured_outputs_regex: str | None = Field(
        None, description="Regular expression that vLLM's completions must match."
    )
    use_transformers_continuous_batching: bool = Field(
        False, description="transformers' continuous batching; for language models on a GPU."
    )

    @model_validator(mode="after")
    def _of_this_engine(self) -> "Generation":
        is_vllm = self.engine != "transformers"
        if self.vllm_structured_outputs_regex is not None and not is_vllm:
            raise ValueError(
                "vllm_structured_outputs_regex: only vLLM holds completions to it; set "
                "engine=vllm_colocate or vllm_server, or leave it out"
            )
        if self.use_transformers_continuous_batching and is_vllm:
            raise ValueError(
                f"use_transformers_continuous_batching: {self.engine} does not use transformers; "
                "leave it out"
            )
        return self


class Rollouts(Section):
    every_steps: Whole = Field(1, ge=1, description="Steps between two kept sets of rollouts.")
    per_step: Whole = Field(4, ge=0, description="Completions kept of such a step; 0: none.")


class Evaluation(Section):
    rows: Whole = Field(
        64,
        ge=0,
        description="Last rows, at most a tenth of all, that are held out of training and asked "
        "before and after it; 0: none.",
    )
    batch_size: Annotated[Whole, Field(ge=1)] | Literal["auto"] = Field(
        8, description="Questions at a time; auto begins with many, and halves what does not fit."
    )
    blank: bool = Field(
        False, description="Evaluate once more with grey images: does the model use the image?"
    )
    every_steps: Whole | None = Field(
        None,
        ge=1,
        description="Ask the held-out rows during training too, every so many steps; "
        "checkpoints.keep_best keeps the checkpoint that earned most.",
    )


class GrpoModel(Model):
    freeze_vision: bool = Field(
        False, description="Freeze the vision tower; language model and projector learn."
    )


class Sft(Section):
    answer: str = Field(
        "{solution}", description="The answer to teach; {solution} is the row's own."
    )

    @model_validator(mode="after")
    def _uses_the_row(self) -> "Sft":
        if "{solution}" not in self.answer:
            raise ValueError("answer: expected {solution} in it, which stands for the row's own")
        return self


class GrpoConfig(Profile):
    stage: Literal["grpo", "sft"] = Field(
        "grpo", description="GRPO, or the supervised stage that teaches the form of answers."
    )
    model: GrpoModel
    data: GrpoData
    rewards: Rewards = Rewards()
    tools: Tools = Tools()
    grpo: Grpo = Grpo()
    generation: Generation = Generation()
    rollouts: Rollouts = Rollouts()
    evaluation: Evaluation = Evaluation()
    sft: Sft = Sft()
    on_no_signal: Literal["warn", "stop"] = Field(
        "warn",
        description="When a run shows that it cannot learn (no spread of rewards, all completions "
        "cut, KL run away, entropy or length collapsed): say so, or save and stop.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_set_of_switches(cls, values: Any) -> Any:
        """TRL's grpo.sampling.chat_template_kwargs are the model's, which everything reads."""
        try:
            own = values["grpo"]["sampling"]["chat_template_kwargs"]
            model = dict(values["model"])
            switches = {**model.get("chat_template_kwargs", {}), **own}
        except (KeyError, TypeError):
            return values
        return {**values, "model": {**model, "chat_template_kwargs": switches}}

    @model_validator(mode="after")
    def _possible(self) -> "GrpoConfig":
        if not (self.rewards.functions or self.tools.environment):
            raise ValueError(
                "rewards: expected at least one, or tools.environment with get_reward; "
                "accuracy_extracted is the usual one"
            )
        if self.stage == "grpo":
            self._possible_reference()
            self._possible_sampling()
            self._possible_evaluation()
        elif self.tools.used:
            raise ValueError("tools: the supervised stage calls none; leave them out")
        return self

    def _possible_sampling(self) -> None:
        is_vllm = self.generation.engine != "transformers"
        if is_vllm and self.grpo.sampling.cache_implementation is not None:
            raise ValueError(
                "grpo.sampling.cache_implementation: vLLM has a cache of its own; leave it out"
            )

    def _possible_evaluation(self) -> None:
        if self.tools.used and self.evaluation.rows:
            raise ValueError(
                "evaluation.rows: held-out rows are asked without tools, which says nothing of a "
                "model that learns to call them; set evaluation.rows=0"
            )
        if self.evaluation.every_steps and self.parallel.strategy in ("fsdp2", "zero3"):
            raise ValueError(
                "evaluation.every_steps: a model that is split over ranks cannot be asked during "
                "training; use ddp or zero2, or leave it out"
            )

    def _possible_reference(self) -> None:
        if not self.grpo.has_reference:
            return
        if self.grpo.reference.sync_ref_model and self.adapter.method != "full":
            raise ValueError(
                "grpo.reference.sync_ref_model: with an adapter the reference is the model without "
                "it, which cannot move; set adapter.method=full or leave it out"
            )
        if self.model.random_init and self.adapter.method == "full":
            raise ValueError(
                "grpo.beta: a reference of random weights holds the model to noise; set "
                "grpo.beta=0 or start from trained weights"
            )
        if self.adapter.method != "full" and self.adapter.name != "default":
            raise ValueError(
                "adapter.name: with grpo.beta over 0 the adapter has to be called default; "
                "the reference is a second adapter beside it"
            )

    def row_length(self, shape: "ModelShape") -> int:
        """Prompt, images included, and completion."""
        return self.grpo.max_prompt_length + self.grpo.max_completion_length

    def scored_tokens(self, shape: "ModelShape") -> int:
        """Those of the completion; the supervised stage makes logits of all, as the model does."""
        if self.stage == "sft":
            return self.row_length(shape)
        return self.grpo.max_completion_length

    def samples_of(self, rows: int) -> int:
        """A group of completions for each prompt."""
        return rows * self.grpo.num_generations if self.stage == "grpo" else rows

    @property
    def generates(self) -> bool:
        return self.stage == "grpo"

    @property
    def has_reference(self) -> bool:
        return self.stage == "grpo" and self.grpo.has_reference

    @property
    def engine_share(self) -> float:
        """Share of vLLM on the same card; asleep it frees its memory for the step."""
        colocated = self.stage == "grpo" and self.generation.engine == "vllm_colocate"
        return self.generation.gpu_memory_utilization if colocated else 0.0

    def engine_weights(self, shape: "ModelShape") -> int:
        """vLLM has a copy of all weights of its own in 16 bits."""
        return 2 * shape.parameters // self.generation.tensor_parallel if self.engine_share else 0

    @property
    def fuses_head(self) -> bool:
        """TRL's trainer of GRPO always does."""
        return self.stage == "grpo"

    def seen_shape(self, shape: "ModelShape") -> "ModelShape":
        """The model's shape with images as large as the profile lets them be, and frozen towers."""
        most = self.grpo.max_pixels
        towers = [
            replace(tower, patches=most // tower.patch**2) if most and tower.patch else tower
            for tower in shape.towers
        ]
        is_frozen = self.model.freeze_vision
        linears = [
            replace(linear, where="frozen") if is_frozen and linear.where == "vision" else linear
            for linear in shape.linears
        ]
        return replace(shape, towers=tuple(towers), linears=tuple(linears))

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches of an optimizer step on these ranks.

        Raises UserError where the global batch cannot be shared among ranks and groups.
        """
        whole, step = self.train.global_batch_size, self.train.per_device_batch_size * world_size
        if self.stage == "sft" or whole is None or whole % step == 0:
            return super().accumulation_steps(world_size)
        raise UserError(
            f"expected train.global_batch_size to be a multiple of {step} "
            f"({self.train.per_device_batch_size} a device x {world_size} ranks) and of "
            f"grpo.num_generations={self.grpo.num_generations}, found {whole}; set it to "
            f"{self._fitting(whole, step)}"
        )

    def check_groups(self, world_size: int) -> None:
        """Check that each generation holds whole groups of completions.

        Raises UserError, naming the nearest batch that fits, where it does not.
        """
        if self.stage != "grpo":
            return
        size, micro_batches = self.train.per_device_batch_size, self.generated_batches(world_size)
        whole, group = size * micro_batches * world_size, self.grpo.num_generations
        accumulation = self.accumulation_steps(world_size)
        if micro_batches % accumulation:
            raise UserError(
                f"expected grpo.steps_per_generation to be a multiple of {accumulation}, the "
                f"micro-batches of an optimizer step, found {micro_batches}; set it to "
                f"{-(-micro_batches // accumulation) * accumulation}"
            )
        if whole % group == 0:
            return
        raise UserError(
            f"expected a batch that divides by grpo.num_generations={group}, found {whole} "
            f"({size} a device x {micro_batches} accumulated x {world_size} ranks); set "
            f"train.global_batch_size={self._fitting(whole, size * world_size)}, or another "
            "grpo.num_generations"
        )

    def generated_batches(self, world_size: int) -> int:
        """Micro-batches of a rank whose completions are generated at once."""
        return self.grpo.steps_per_generation or self.accumulation_steps(world_size)

    def _fitting(self, whole: int, step: int) -> int:
        """The smallest batch from `whole` on that divides over ranks and holds whole groups."""
        both = math.lcm(step, self.grpo.num_generations)
        return -(-whole // both) * both

    def prompts_a_step(self, world_size: int) -> int:
        """Number of prompts whose completions are generated at once, over all ranks."""
        batches = self.generated_batches(world_size)
        return self.train.per_device_batch_size * batches * world_size // self.grpo.num_generations
