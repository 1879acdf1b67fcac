"""The sections that every workload's config shares; each setting is declared here once."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from workloads.errors import UserError

if TYPE_CHECKING:
    from workloads.plan.shapes import ModelShape

# Tokens of a row where no setting bounds them.
_USUAL_LENGTH = 1024


def _no_truth_as_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


_TRUTHS = {
    **dict.fromkeys(("1", "true", "yes", "on", "y", "t"), True),
    **dict.fromkeys(("0", "false", "no", "off", "n", "f"), False),
}


def _truth(value: Any) -> Any:
    """A word that every other switch takes as true or false; anything else as it is."""
    if isinstance(value, str):
        return _TRUTHS.get(value.lower(), value)
    return bool(value) if isinstance(value, int) and value in (0, 1) else value


def _switch(value: Any) -> Any:
    """`--use_wandb`, `USE_WANDB=yes` and `=1` are the same wish as `wandb: online`."""
    truth = _truth(value)
    return ("online" if truth else "off") if isinstance(truth, bool) else value


def _listed(value: Any) -> Any:
    """One name, such as `all-linear`, is a list of one."""
    return (value,) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    """A name such as `1234` is read as a number from YAML or the environment; it is a name."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


def _folder_name(value: str) -> str:
    """The name of folders, images and services, which not every letter may stand in."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(
            "expected letters a to z, digits, and '.', '_' or '-' behind the first one; "
            "set name to such a one, or rename the profile's file"
        )
    return value


Whole = Annotated[int, BeforeValidator(_no_truth_as_number)]
Number = Annotated[float, BeforeValidator(_no_truth_as_number), Field(allow_inf_nan=False)]
Text = Annotated[str, BeforeValidator(_text)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names.

    list_field: the setting of the group that a plain list in its place stands for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    list_field: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if cls.list_field is not None and isinstance(value, list | tuple):
            return {cls.list_field: value}
        return value


class Model(Section):
    name: Text = Field(description="Hub id or local folder of the model.")
    fallbacks: tuple[Text, ...] = Field(
        (), description="Tried in order where `name` cannot be loaded; each failure is reported."
    )
    revision: Text | None = Field(None, description="Branch, tag or commit on the hub.")
    trust_remote_code: bool = Field(
        False, description="Run code of the model's repository; needs a 40-digit `revision`."
    )
    chat_template: Text | None = Field(
        None,
        description="A Jinja file, one of the tokenizer's own by name, or a named prompt format.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Switches of the chat template, such as {enable_thinking: false}.",
    )
    random_init: bool = Field(
        False, description="Start from random weights of the model's config, for demos and benches."
    )
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = Field(
        "auto", description="auto takes the first that works: flash, sdpa, eager."
    )

    @model_validator(mode="after")
    def _pinned_code(self) -> "Model":
        commit = self.revision or ""
        pinned = len(commit) == 40 and all(digit in "0123456789abcdef" for digit in commit)
        if self.trust_remote_code and not pinned:
            raise ValueError(
                "trust_remote_code needs a full 40-digit revision, so that the code cannot change"
            )
        return self


class Optim(Section):
    optimizer: Literal["adamw", "adamw_8bit"] = Field("adamw", description="Optimizer.")
    learning_rate: Number = Field(2e-5, gt=0, lt=1, description="Peak learning rate.")
    schedule: Literal["linear", "cosine", "cosine_epochs", "constant"] = Field(
        "linear",
        description="Course of the learning rate after the warm-up; cosine falls at every step, "
        "cosine_epochs once an epoch.",
    )
    warmup_steps: Number = Field(
        0, ge=0, description="Steps of warm-up; below 1 it is a share of all steps."
    )
    weight_decay: Number = Field(0.0, ge=0, description="Decoupled weight decay.")
    beta1: Number = Field(0.9, ge=0, lt=1, description="AdamW's first decay rate.")
    beta2: Number = Field(0.999, ge=0, lt=1, description="AdamW's second decay rate.")
    epsilon: Number = Field(1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: Number = Field(1.0, gt=0, description="Gradients are clipped to this norm.")


class Train(Section):
    epochs: Number = Field(1, gt=0, description="Passes over the training data.")
    max_steps: Whole | None = Field(
        None, ge=1, description="Stop after so many optimizer steps, whatever `epochs` says."
    )
    per_device_batch_size: Whole = Field(1, ge=1, description="Samples a rank and micro-batch.")
    global_batch_size: Whole | None = Field(
        None, ge=1, description="Samples an optimizer step; accumulation follows from it."
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="Compute type; fp16 scales the loss dynamically."
    )
    master_weights: Literal["fp32", "compute"] = Field(
        "fp32", description="Type of trained weights: fp32, or the same as the compute type."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, slower."
    )
    activation_offloading: bool = Field(
        False, description="Move activations to host memory until the backward pass (llm, grpo)."
    )
    compile: bool = Field(False, description="torch.compile the model.")
    fused_cross_entropy: bool = Field(
        True, description="Never hold the logits of all tokens at once, where the stack can."
    )
    seed: Whole = Field(42, ge=0, lt=2**32, description="Seed of weights, order and dropout.")
    workers: Whole = Field(0, ge=0, description="Data loader processes a rank.")
    log_every: Whole = Field(1, ge=1, description="Steps between two rows of metrics.jsonl.")
    on_out_of_memory: Literal["stop", "halve"] = Field(
        "stop",
        description="halve: restart with half the micro-batch at the same global batch.",
    )
    max_nonfinite_steps: Whole = Field(
        3, ge=0, description="Steps with a non-finite loss or gradient to skip before stopping."
    )


# Buckets and limits of DeepSpeed's `zero_optimization`, which change speed and memory alone.
ZeroField = Literal[
    "overlap_comm",
    "contiguous_gradients",
    "round_robin_gradients",
    "allgather_partitions",
    "allgather_bucket_size",
    "reduce_scatter",
    "reduce_bucket_size",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
]

# Those that transformers' Trainer works out from the model's hidden size.
_FOLLOW_HIDDEN_SIZE: tuple[ZeroField, ...] = (
    "reduce_bucket_size",
    "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold",
)


class Parallel(Section):
    strategy: Literal["auto", "single", "ddp", "fsdp2", "zero2", "zero3"] = Field(
        "auto", description="auto: one rank alone, ddp for adapters, fsdp2 otherwise."
    )
    zero: dict[ZeroField, bool | Annotated[int, Field(ge=0)] | Literal["auto"]] = Field(
        default_factory=dict,
        description="Fields of DeepSpeed's zero_optimization that change speed and memory alone, "
        "by its names; the others keep its defaults.",
    )
    nodes: Whole = Field(1, ge=1, le=64, description="Machines or containers of the job.")
    ranks_per_node: Annotated[Whole, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Processes on each node; auto: one for each GPU, one without GPU."
    )
    master_port: Whole = Field(
        37171, ge=1024, le=65533, description="Port of the rendezvous; the next one is used too."
    )
    node_timeout: Number = Field(
        300, gt=0, description="Seconds to wait for all nodes; then the missing ones are named."
    )
    peer_timeout: Number = Field(
        20, gt=0, description="Seconds without a word after which another node counts as lost."
    )
    hang_timeout: Number = Field(
        600, gt=0, description="Seconds without progress after which a rank counts as hung."
    )
    restarts: Whole = Field(3, ge=0, description="Restarts after lost ranks before giving up.")
    restart_delay: Number = Field(
        2, ge=0, description="Seconds before the first restart; doubles with each further one."
    )

    @model_validator(mode="after")
    def _zero_fields(self) -> "Parallel":
        if self.zero and self.strategy not in ("zero2", "zero3"):
            raise ValueError("zero: DeepSpeed's fields need parallel.strategy=zero2 or zero3")
        for name, value in self.zero.items():
            if value == "auto" and name not in _FOLLOW_HIDDEN_SIZE:
                raise ValueError(f"zero.{name}: auto is for {', '.join(_FOLLOW_HIDDEN_SIZE)}")
        return self


class Checkpoints(Section):
    every_steps: Whole | None = Field(
        None, ge=1, description="Steps between checkpoints; none: only at a stop and at the end."
    )
    keep_last: Whole = Field(2, ge=1, description="Newest checkpoints to keep.")
    keep_best: bool = Field(True, description="Also keep the one with the lowest evaluation loss.")


class Adapter(Section):
    method: Literal["full", "lora", "qlora"] = Field(
        "full", description="Train all weights, LoRA, or LoRA over a quantised base."
    )
    name: Text = Field("default", description="Name of the adapter, to keep several side by side.")
    r: Whole = Field(16, ge=1, description="Rank of the adapter.")
    alpha: Number = Field(32, gt=0, description="Scale of the adapter (alpha / r).")
    dropout: Number = Field(0.05, ge=0, lt=1, description="Dropout before the adapter.")
    targets: Annotated[tuple[Text, ...], BeforeValidator(_listed)] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        description="Modules that get an adapter; all-linear: every linear layer but the head.",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r), for high ranks.")
    use_dora: bool = Field(False, description="DoRA: learn the weights' magnitudes apart.")
    modules_to_save: Annotated[tuple[Text, ...], BeforeValidator(_listed)] = Field(
        (), description="Modules trained whole and kept with the adapter, such as lm_head."
    )
    quantisation: Literal["nf4", "int8"] = Field("nf4", description="Base weights under qlora.")
    double_quantisation: bool = Field(True, description="Quantise the nf4 constants too.")
    resume_from: Text | None = Field(None, description="Folder of an adapter to go on with.")


class Tracking(Section):
    tensorboard: bool = Field(True, description="Write TensorBoard files into the run.")
    wandb: Annotated[Literal["off", "online", "offline"], BeforeValidator(_switch)] = Field(
        "off", description="Weights & Biases; a run never waits for it or fails with it."
    )
    wandb_project: Text = Field("tatara", description="Project on Weights & Biases.")
    wandb_entity: Text | None = Field(None, description="Team or user on Weights & Biases.")
    wandb_artifacts: bool = Field(
        False,
        description="Where wandb is on: keep a finished run's report and images there too.",
    )

    @property
    def keeps_artifacts(self) -> bool:
        return self.wandb_artifacts and self.wandb != "off"


def _when(value: Any) -> Any:
    """`--push_to_hub`, `PUSH_TO_HUB=true` and `=1` are the same wish as `push: end`."""
    truth = _truth(value)
    return ("end" if truth else "never") if isinstance(truth, bool) else value


class Export(Section):
    enabled: bool = Field(True, description="Export the final model into the run by itself.")
    checkpoint: Literal["last", "best"] = Field(
        "last", description="best: the kept checkpoint with the lowest held-out loss."
    )
    hub_model_id: Text | None = Field(None, description="Repository on the hub to push to.")
    push: Annotated[Literal["never", "end", "saves"], BeforeValidator(_when)] = Field(
        "never", description="Push the exported model to the hub: at the end, or at saves too."
    )
    private: bool = Field(
        True, description="A repository that the push makes is private; one that is there stays."
    )
    revision: Text | None = Field(None, description="Branch to push to, made where there is none.")
    tags: tuple[Text, ...] = Field((), description="Tags of the model card, beside Tatara's own.")

    @model_validator(mode="after")
    def _has_target(self) -> "Export":
        if self.push != "never" and self.hub_model_id is None:
            raise ValueError(f"push={self.push} needs export.hub_model_id, such as me/my-model")
        if self.push != "never" and not self.enabled:
            raise ValueError(f"push={self.push} pushes what export writes; set export.enabled=true")
        return self


class Profile(Section):
    """What every workload's config holds; a workload adds its data and evaluation.

    learning_rates: by adapter.method, taken where nothing sets optim.learning_rate; without an
    entry the setting's own default holds.
    """

    learning_rates: ClassVar[Mapping[str, float]] = {}

    workload: Text = Field(description="The code that trains: llm, vla or grpo.")
    name: Annotated[Text, AfterValidator(_folder_name)] = Field(
        description="Name of the profile; its runs are under outputs/<name>/.",
    )
    summary: Text = Field("", description="One line that says what this profile does.")
    honours: tuple[Text, ...] = Field(
        (), description="Short names of `.env` and flags that this profile takes."
    )
    recipes: tuple[Text, ...] = Field(
        (),
        description="Profiles in profiles/recipes/ for other machines, the most capable first: "
        "RECIPE=NAME takes one in this profile's place, RECIPE=auto the first that fits the GPU.",
    )
    profile: Literal["as_written", "auto"] = Field(
        "as_written",
        description="auto: where it is not safe on the GPUs here, the planner's settings for them, "
        "as RECIPE=auto; what the command line sets stays.",
    )
    model: Model
    adapter: Adapter = Adapter()
    optim: Optim = Optim()
    train: Train = Train()
    parallel: Parallel = Parallel()
    checkpoints: Checkpoints = Checkpoints()
    tracking: Tracking = Tracking()
    export: Export = Export()

    @model_validator(mode="after")
    def _shards_its_base(self) -> "Profile":
        adapter = self.adapter
        is_int8 = adapter.method == "qlora" and adapter.quantisation == "int8"
        if is_int8 and self.parallel.strategy == "fsdp2":
            raise ValueError(
                "parallel.strategy=fsdp2 cannot shard a base in int8: sharded weights lose what "
                "bitsandbytes (0.50) keeps on them, and the first step fails; set "
                "adapter.quantisation=nf4, or parallel.strategy=ddp"
            )
        return self

    @model_validator(mode="after")
    def _scales_its_gradients(self) -> "Profile":
        adapter = self.adapter
        if adapter.method != "full" and adapter.modules_to_save and self.train.precision == "fp16":
            raise ValueError(
                "adapter.modules_to_save are trained in the base's type, and fp16 gradients cannot "
                "be unscaled in place, so that the first step fails; set train.precision=bf16 or "
                "fp32, or leave them out"
            )
        return self

    def row_length(self, shape: "ModelShape") -> int:
        """Tokens of the longest row, which a plan counts every row as."""
        return _USUAL_LENGTH

    def scored_tokens(self, shape: "ModelShape") -> int:
        """Tokens of a row whose logits the loss needs."""
        return self.row_length(shape)

    @property
    def sequences(self) -> int:
        """Sequences that a row is read as."""
        return 1

    @property
    def fuses_head(self) -> bool:
        """Whether the loss is made tile by tile, without the logits of all tokens at once."""
        return self.train.fused_cross_entropy

    def samples_of(self, rows: int) -> int:
        """Samples that an epoch of so many rows makes."""
        return rows

    @property
    def generates(self) -> bool:
        """Whether a step writes the texts that it learns from."""
        return False

    @property
    def packs(self) -> bool | None:
        """Whether rows share sequences; None where the workload cannot do that."""
        return None

    @property
    def has_reference(self) -> bool:
        """Whether a frozen copy of what is trained is held beside it."""
        return False

    @property
    def engine_share(self) -> float:
        """Share of the GPU that another engine takes between steps, while the states stay."""
        return 0.0

    def engine_weights(self, shape: "ModelShape") -> int:
        """Bytes of weights that this engine holds within its share."""
        return 0

    @property
    def keeps_gathered(self) -> bool:
        """Whether FSDP2 keeps its parameters gathered between the passes.

        The fused head would gather its weight again for every chunk of the backward pass. A
        quantised base is too large for it: sharded, it may be all that fits.
        """
        return self.train.fused_cross_entropy and self.adapter.method != "qlora"

    @property
    def needs_input_gradients(self) -> bool:
        """Whether the output of the embeddings is made to need a gradient, as TRL does it."""
        return self.adapter.method != "full" and self.train.gradient_checkpointing

    def extra_parameters(self, shape: "ModelShape") -> int:
        """Numbers that are trained beside the model's own, whatever the rest is; always fp32."""
        return 0

    def seen_shape(self, shape: "ModelShape") -> "ModelShape":
        """The model's shape as this profile's rows use it."""
        return shape

    def ranks_per_node(self, gpus: int) -> int:
        """Processes on each node, given the GPUs that one node has."""
        wanted = self.parallel.ranks_per_node
        return max(1, gpus) if wanted == "auto" else wanted

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches an optimizer step; UserError where the global batch does not divide."""
        whole = self.train.global_batch_size
        step = self.train.per_device_batch_size * world_size
        if whole is None:
            return 1
        if whole % step:
            raise UserError(
                f"expected train.global_batch_size to be a multiple of {step} "
                f"({self.train.per_device_batch_size} a device x {world_size} ranks), "
                f"found {whole}; set it to {max(step, whole // step * step)}"
            )
        return whole // step

    def strategy(self, world_size: int) -> str:
        """The parallel strategy that `auto` stands for; one rank has nothing to share or shard."""
        wanted = self.parallel.strategy
        if world_size == 1 and wanted in ("auto", "ddp", "fsdp2"):
            return "single"
        if wanted != "auto":
            return wanted
        return "fsdp2" if self.adapter.method == "full" else "ddp"
