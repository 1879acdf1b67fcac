"""Settings of the vla workload: OpenVLA and its OFT variant on robot demonstrations."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from workloads.config.sections import Number, Profile, Section, Text, Whole

if TYPE_CHECKING:
    from workloads.plan.shapes import ModelShape

# Tokens of a prompt and its answer, and numbers of an action where no mask counts them: seven
# joints and a gripper.
TEXT_TOKENS, _ACTION = 64, 8


class Source(Section):
    """One dataset of demonstrations, in any format that `tatara data inspect` knows."""

    source: Text = Field(
        description="Folder of demonstrations: CRANE-X7, LeRobot, RLDS, CALVIN, HDF5, ROS 2 bags; "
        "or a LeRobot dataset's name on the hub."
    )
    revision: Text | None = Field(
        None, description="Commit, tag or branch of a dataset on the hub."
    )
    weight: Number = Field(
        1, gt=0, description="How often an epoch sees each step: 2 is twice, 0.5 another half."
    )
    name: Text | None = Field(
        None, description="Its key in the statistics (unnorm_key); default: what the files say."
    )
    instruction: Text | None = Field(
        None, description="For episodes without one, which are refused otherwise."
    )
    instruction_key: Text | None = Field(
        None, description="Feature that holds the instructions; default: the usual ones."
    )
    instruction_map: dict[str, Text] = Field(
        {}, description="Texts, or numbers, of the data to the instruction that counts."
    )
    color_order: Literal["rgb", "bgr"] | None = Field(
        None, description="Order of colours in the images where no meta.json says it."
    )
    split: Text | None = Field(None, description="Split to read (RLDS).")
    state_keys: tuple[Text, ...] = Field(
        (), description="Vectors that make the state; topics of a ROS 2 bag."
    )
    action_keys: tuple[Text, ...] = Field(
        (), description="Vectors that make the action; topics of a ROS 2 bag."
    )
    rate: Number | None = Field(
        None, gt=0, description="Steps a second to sample a ROS 2 bag at; default: 10."
    )


class Augmentation(Section):
    """OpenVLA's own values; inference then crops the centre of the same area."""

    enabled: bool = Field(True, description="Vary images while training.")
    crop_area: Number = Field(0.9, gt=0, le=1, description="Share of the area that is kept.")
    brightness: Number = Field(0.2, ge=0, lt=1, description="Added to all pixels, at most.")
    contrast: Number = Field(0.2, ge=0, lt=1, description="Factor 1 ± this about the mean.")
    saturation: Number = Field(0.2, ge=0, lt=1, description="Factor 1 ± this.")
    hue: Number = Field(0.05, ge=0, le=0.5, description="Turn of the colour circle, at most.")

    @property
    def served_area(self) -> float:
        """The centre crop's share of the area where images are not varied."""
        return self.crop_area if self.enabled else 1.0


class VlaData(Source):
    """The dataset, those mixed into it, and how its steps become samples.

    Actions are normalised from q01..q99 to -1..1 (BOUNDS_Q99), which is what OpenVLA's own tools
    undo; masked dimensions pass as they are.
    """

    mixed_with: tuple[Source, ...] = Field((), description="Further datasets, by weight.")
    cameras: tuple[Text, ...] = Field(
        (), description="Cameras to look through, in order; default: primary, or the first."
    )
    eval_share: Number = Field(
        0.05, ge=0, lt=1, description="Share of the episodes held out, at least one; 0: none."
    )
    action_mask: tuple[bool, ...] | None = Field(
        None, description="One for each action dimension; false is not normalised."
    )
    statistics: Text | None = Field(
        None, description="A dataset_statistics.json to use instead of computing them."
    )
    cache_frames: bool | Literal["auto"] = Field(
        "auto",
        description="Keep decoded, resized images on disk for the epochs after the first; auto: "
        "where there are any, and half of the free disk holds them.",
    )
    drop_last_placeholder: bool = Field(
        True, description="Leave out a last step whose action is its own state."
    )
    max_damaged: Whole | None = Field(
        None, ge=0, description="Damaged records to skip before stopping; default 10 or 0.1 %."
    )
    augmentation: Augmentation = Augmentation()

    def sources(self) -> tuple[Source, ...]:
        """All datasets, this one first."""
        own = self.model_dump(include=set(Source.model_fields))
        return (Source.model_validate(own), *self.mixed_with)


class ActionHead(Section):
    """How actions come out of the model: as 256-bin tokens, or as a chunk in one pass (OFT)."""

    kind: Literal["tokens", "oft"] = Field(
        "tokens", description="OpenVLA's action tokens, or OFT's parallel decoding."
    )
    chunk: Whole = Field(8, ge=1, description="Steps predicted at once (oft).")
    decode: Literal["l1", "discrete"] = Field("l1", description="Regression, or tokens (oft).")
    proprio: bool = Field(True, description="Give the robot's state to the model (oft).")


class VlaEvaluation(Section):
    every_steps: Whole | None = Field(
        None, ge=1, description="Steps between looks at held-out episodes; none: only at the end."
    )
    samples: Whole | None = Field(
        512, ge=1, description="Held-out steps to look at, spread over all; none: all."
    )
    before: bool = Field(False, description="Look at them before the first step too.")
    task: Literal["reach"] | None = Field(
        None, description="Closed-loop task for the exported policy: reach, in the simulator."
    )
    scenes: Whole = Field(100, ge=1, description="Unseen scenes of the task.")
    seed: Whole = Field(0, ge=0, description="Which scenes of the task.")


class VlaConfig(Profile):
    data: VlaData
    action_head: ActionHead = ActionHead()
    evaluation: VlaEvaluation = VlaEvaluation()

    @model_validator(mode="after")
    def _possible(self) -> "VlaConfig":
        if self.model.trust_remote_code:
            raise ValueError("model.trust_remote_code: vla never runs code of a checkpoint")
        if self.model.fallbacks:
            raise ValueError("model.fallbacks: vla takes one model; name it as model.name")
        if self.evaluation.task and not self.export.enabled:
            raise ValueError("evaluation.task: it is done by the exported model (export.enabled)")
        if self.action_head.kind == "oft" and self.model.attention == "eager":
            raise ValueError("model.attention: oft needs sdpa or flash_attention_2")
        sharded = self.parallel.strategy in ("fsdp2", "zero2", "zero3")
        if sharded and self.adapter.method != "full":
            raise ValueError("parallel.strategy: adapters of vla train on one rank or under ddp")
        return self

    @property
    def chunk(self) -> int:
        """Action steps that one sample holds."""
        return self.action_head.chunk if self.action_head.kind == "oft" else 1

    @property
    def regresses(self) -> bool:
        """Whether actions are numbers of an L1 head rather than tokens."""
        return self.action_head.kind == "oft" and self.action_head.decode == "l1"

    def row_length(self, shape: "ModelShape") -> int:
        """Patches, text, and with OFT the slots of the actions and of the robot's state."""
        length = shape.image_tokens + TEXT_TOKENS
        if self.action_head.kind == "oft":
            length += self.action_head.chunk * self.action_size + self.action_head.proprio
        return length

    def scored_tokens(self, shape: "ModelShape") -> int:
        """The tokens of an action and its end, the slots of a chunk, or none of an L1 head's."""
        if self.regresses:
            return 0
        is_chunk = self.action_head.kind == "oft"
        return self.action_head.chunk * self.action_size if is_chunk else self.action_size + 1

    @property
    def fuses_head(self) -> bool:
        """OpenVLA's own loss makes logits of its few labelled positions alone."""
        return False

    @property
    def action_size(self) -> int:
        """Numbers of an action, by its mask where there is one."""
        return len(self.data.action_mask or ()) or _ACTION

    def extra_parameters(self, shape: "ModelShape") -> int:
        """Numbers of an OFT head and of what projects the robot's state.

        The head is a linear layer on all slots of a step, two residual blocks, a linear layer, and
        a norm before each.
        """
        if self.action_head.kind != "oft":
            return 0
        hidden, size = shape.hidden, self.action_size
        square = hidden * hidden + hidden
        state = square + size * hidden + hidden if self.action_head.proprio else 0
        if self.action_head.decode != "l1":
            return state
        first, last = size * hidden * (hidden + 2) + hidden, size * (hidden + 1) + 2 * hidden
        return first + 2 * (square + 2 * hidden) + last + state

    def seen_shape(self, shape: "ModelShape") -> "ModelShape":
        """By its cameras: towers see the images of a row one by one, and the patches of all of
        them stand in the sequence."""
        cameras = len(self.data.cameras)
        if cameras < 2:
            return shape
        towers = tuple(replace(tower, patches=cameras * tower.patches) for tower in shape.towers)
        return replace(shape, towers=towers, image_tokens=cameras * shape.image_tokens)
