"""Settings of the vla workload: OpenVLA, its OFT variant, and policy heads that remember."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from workloads.config.sections import Number, Profile, Section, Text, Whole
from workloads.data.action_parts import Change
from workloads.errors import did_you_mean
from workloads.vla.mixtures import dataset_settings, mixtures
from workloads.vla.robovlms.spec import GPT_HEADS, IMAGE_SIDE, HeadSize, parameters

if TYPE_CHECKING:
    from workloads.plan.shapes import ModelShape

# Tokens of a prompt and its answer; the size of an action without a mask: 7 joints, a gripper.
TEXT_TOKENS, _ACTION = 64, 8
_WINDOW = 8  # as in most of RoboVLMs' published settings


class ActionPart(Section):
    """Some numbers of an action: recorded ones, changed in turn, or constants."""

    of: Literal["action", "state"] = Field("action", description="What was recorded.")
    numbers: tuple[Whole, ...] = Field(
        (), description="Which of its numbers, negative ones from the end; none: all."
    )
    changes: tuple[Change, ...] = Field(
        (),
        description="clip: to 0 and 1; invert: 1 minus it; binary: a gripper's position as the end "
        "that it reaches next; absolute: commands that close (1) or open (-1) as 0 closed, 1 open; "
        "euler: a quaternion x, y, z, w as roll, pitch, yaw; moved: from this step to the next.",
    )
    constant: tuple[Number, ...] = Field((), description="These numbers at every step instead.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "ActionPart":
        if self.constant and (self.numbers or self.changes or self.of != "action"):
            raise ValueError("constant: excludes recorded numbers; leave out the others")
        return self


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
        1,
        gt=0,
        description="Uses of each step in an epoch; 2: twice, 0.5: a different half each epoch.",
    )
    name: Text | None = Field(
        None,
        description="The dataset's key in the statistics (unnorm_key); default: as in the files.",
    )
    instruction: Text | None = Field(
        None, description="Instruction of episodes without one, which are refused otherwise."
    )
    instruction_key: Text | None = Field(
        None, description="Feature that holds the instructions; default: the usual ones."
    )
    instruction_map: dict[str, Text] = Field(
        {}, description="Instruction for each text or number in the data."
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
    fps: Number | None = Field(
        None, gt=0, description="Steps a second, where the files do not say."
    )
    camera_names: dict[str, Text] = Field(
        {}, description="Other names of cameras: {primary: front} makes the camera front primary."
    )
    action_parts: tuple[ActionPart, ...] = Field(
        (), description="What an action is made of, part by part; default: as recorded."
    )
    skip_first: Whole = Field(
        0, ge=0, description="Steps at the start of every episode to leave out."
    )
    skip_unlabelled: bool = Field(
        False, description="Leave out episodes without an instruction, which are refused otherwise."
    )


class Augmentation(Section):
    """Augmentation with OpenVLA's defaults; inference then crops the centre of the same area."""

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


class Bounds(Section):
    """Fixed bounds instead of statistics, as in RoboVLMs: -0.65 to 0.65 on CALVIN."""

    low: Number = Field(-1, description="Action value that becomes -1; smaller ones are cut off.")
    high: Number = Field(1, description="Action value that becomes 1; larger ones are cut off.")

    @model_validator(mode="after")
    def _ordered(self) -> "Bounds":
        if self.low >= self.high:
            raise ValueError(f"expected low below high, found {self.low:g} and {self.high:g}")
        return self


class VlaData(Source):
    """The dataset, those mixed into it, and how its steps become samples.

    Actions are normalised from q01..q99 to -1..1 (BOUNDS_Q99), which is what OpenVLA's own tools
    undo; masked dimensions pass as they are. Settings of policy heads are refused with other kinds
    of `action_head`.
    """

    mixed_with: tuple[Source, ...] = Field((), description="Further datasets, by weight.")
    mixture: Text | None = Field(
        None,
        description="A public mixture of datasets that lie in the folder data.source, such as "
        "bridge, rt_1 or oxe_magic_soup; vla/mixtures.yaml has them all.",
    )
    mixture_without: tuple[Text, ...] = Field(
        (), description="Datasets of the mixture to leave out."
    )
    cameras: tuple[Text, ...] = Field(
        (), description="Cameras to use, in order; default: primary, or the first."
    )
    eval_share: Number = Field(
        0.05, ge=0, lt=1, description="Share of the episodes held out, at least one; 0: none."
    )
    action_mask: tuple[bool, ...] | None = Field(
        None, description="True or false for each action dimension; false: not normalised."
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
    window: Whole | None = Field(
        None, ge=1, description="Steps that a sample holds (policy heads); none: 8."
    )
    stride: Whole | None = Field(
        None, ge=1, description="Steps between the starts of two windows (policy heads); none: 1."
    )
    normalise: Bounds | None = Field(
        None,
        description="Fixed bounds of the arm's actions (policy heads); none: q01 to q99 of the "
        "statistics.",
    )
    shift: dict[str, Annotated[Whole, Field(ge=0, lt=IMAGE_SIDE)]] | None = Field(
        None, description="Pixels, at most, that images of a camera are shifted by (policy heads)."
    )
    frames_in_memory: Whole = Field(
        1024,
        ge=1,
        description="Steps whose resized images a loader process holds (policy heads): each is "
        "decoded once for all windows that hold it.",
    )

    @model_validator(mode="after")
    def _of_mixture(self) -> "VlaData":
        """Refuse settings of one dataset beside a mixture, which has them for each dataset."""
        if self.mixture is None:
            if self.mixture_without:
                raise ValueError("mixture_without: needs a mixture; set data.mixture")
            return self
        if self.mixture not in mixtures():
            near = did_you_mean(self.mixture, mixtures())
            raise ValueError(f"mixture: unknown mixture {self.mixture!r}; {near}")
        datasets = mixtures()[self.mixture]
        for name in self.mixture_without:
            if name not in datasets:
                near = did_you_mean(name, datasets)
                raise ValueError(f"mixture_without: {self.mixture} has no {name!r}; {near}")
        if set(self.mixture_without) == datasets.keys():
            raise ValueError("mixture_without: expected to leave a dataset, found all of them")
        for name in sorted(self.model_fields_set & Source.model_fields.keys() - {"source"}):
            raise ValueError(
                f"{name}: of one dataset, and data.mixture={self.mixture} knows its own of each; "
                "leave it out, or name the datasets in data.mixed_with"
            )
        return self

    def sources(self) -> tuple[Source, ...]:
        """All datasets: this one, or those of the mixture, and then those mixed in."""
        if self.mixture is not None:
            return (*self._of_the_mixture(self.mixture), *self.mixed_with)
        own = self.model_dump(include=set(Source.model_fields))
        return (Source.model_validate(own), *self.mixed_with)

    def missing_datasets(self) -> str | None:
        """The sentence that names datasets of a mixture missing on this disk; None where there are
        none."""
        if self.mixture is None:
            return None
        wanted = self._of_the_mixture(self.mixture)
        missing = [str(item.name) for item in wanted if not Path(item.source).exists()]
        if not missing:
            return None
        without = json.dumps([*self.mixture_without, *missing])
        return (
            f"data.mixture={self.mixture}: expected {len(wanted)} datasets in {self.source}, "
            f"found {len(wanted) - len(missing)}; missing: {', '.join(missing)}; download them, "
            f"or leave them out with data.mixture_without='{without}'"
        )

    def _of_the_mixture(self, name: str) -> list[Source]:
        usual = {"skip_unlabelled": True}  # as the published mixtures do
        return [
            Source.model_validate(
                {**usual, "weight": weight, **dataset_settings(dataset, Path(self.source))}
            )
            for dataset, weight in mixtures()[name].items()
            if dataset not in self.mixture_without
        ]


class ActionHead(Section):
    """Output of actions: as 256-bin tokens, as a chunk in one pass (OFT), or from a
    policy head over the steps of a window (RoboVLMs: lstm, gpt, fc, discrete)."""

    kind: Literal["tokens", "oft", "lstm", "gpt", "fc", "discrete"] = Field(
        "tokens",
        description="OpenVLA's action tokens, OFT's parallel decoding, or a policy head on a "
        "vision-language model.",
    )
    chunk: Whole = Field(8, ge=1, description="Steps predicted at once (all kinds but tokens).")
    decode: Literal["l1", "discrete"] = Field("l1", description="Regression, or tokens (oft).")
    proprio: bool = Field(True, description="Give the robot's state to the model (oft).")
    history: Literal["none", "head", "interleaved"] = Field(
        "head",
        description="Where a policy head sees the window: each step alone, in the head, or frames "
        "side by side in one sequence.",
    )
    hidden: Whole = Field(1024, ge=8, description="Width of a policy head.")
    layers: Whole = Field(4, ge=1, description="Layers of the LSTM.")
    dropout: Number = Field(0, ge=0, lt=1, description="Dropout between the LSTM's layers.")
    latent: Whole = Field(1, ge=1, description="Action tokens a frame (policy heads).")
    pool: bool = Field(False, description="Max-pool the states for the head.")
    reads: Literal["action_token", "all", "text", "vision"] = Field(
        "action_token",
        description="States that a policy head is given: of learnt action tokens, or, without "
        "any, of all tokens, the text's or the images'.",
    )
    size: Whole | None = Field(
        None, ge=1, description="Numbers of an action that the data must have (policy heads)."
    )
    gripper: bool = Field(
        True,
        description="The last number is a gripper, open or closed, with a branch of its own; "
        "false: a number like the others (policy heads).",
    )
    gripper_weight: Number = Field(
        0.01, ge=0, description="Weight of the gripper's loss beside the arm's (policy heads)."
    )
    state: bool = Field(False, description="Give the robot's state to a policy head.")
    bins: Whole = Field(256, ge=2, description="Bins of an action's number (discrete).")
    low: Number = Field(-1, description="Normalised value of the first bin (discrete).")
    high: Number = Field(1, description="Normalised value of the last bin (discrete).")

    @property
    def is_policy_head(self) -> bool:
        """Whether actions come from a head on a vision-language model rather than from OpenVLA."""
        return self.kind not in ("tokens", "oft")


class VlaEvaluation(Section):
    every_steps: Whole | None = Field(
        None,
        ge=1,
        description="Steps between evaluations on held-out episodes; none: only at the end.",
    )
    samples: Whole | None = Field(
        512, ge=1, description="Held-out steps to evaluate, spread over all; none: all."
    )
    before: bool = Field(False, description="Evaluate before the first step too.")
    task: Literal["reach", "recall"] | None = Field(
        None,
        description="Closed-loop task for the exported policy in the simulator: reach, or recall, "
        "whose goal is shown only at first.",
    )
    scenes: Whole = Field(100, ge=1, description="Unseen scenes of the task.")
    seed: Whole = Field(0, ge=0, description="Seed of the task's scenes.")


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
        if self.train.activation_offloading:
            raise ValueError("train.activation_offloading: TRL does it, which vla does not use")
        if self.evaluation.task and not self.export.enabled:
            raise ValueError("evaluation.task: it is done by the exported model (export.enabled)")
        if self.action_head.kind == "oft" and self.model.attention == "eager":
            raise ValueError("model.attention: oft needs sdpa or flash_attention_2")
        self._check_head()
        sharded = self.parallel.strategy in ("fsdp2", "zero2", "zero3")
        if sharded and self.adapter.method != "full":
            raise ValueError("parallel.strategy: adapters of vla train on one rank or under ddp")
        return self

    def _check_head(self) -> None:
        """Raise ValueError for settings that do not fit the kind of action head."""
        head, data = self.action_head, self.data
        if not head.is_policy_head:
            of_windows = {"window", "stride", "normalise", "shift"}
            for name in data.model_dump(include=of_windows, exclude_none=True):
                raise ValueError(
                    f"data.{name}: of policy heads; set action_head.kind=lstm, gpt, fc or "
                    f"discrete, or leave it out (found {head.kind})"
                )
            return
        if self.adapter.method == "qlora":
            raise ValueError("adapter.method=qlora: policy heads train with full or lora")
        if head.kind == "discrete" and head.history == "head":
            raise ValueError(
                "action_head.history=head: discrete actions are the language model's tokens, no "
                "head sees a window; set none or interleaved"
            )
        if head.kind == "discrete" and (head.reads != "action_token" or head.state):
            raise ValueError("action_head.reads, action_head.state: of lstm, gpt and fc only")
        if head.reads != "action_token" and not head.pool:
            raise ValueError(
                f"action_head.reads={head.reads}: texts differ in length; set action_head.pool=true"
            )
        if head.kind == "gpt" and (width := head.hidden * head.latent) % GPT_HEADS:
            raise ValueError(
                f"action_head.hidden: expected {GPT_HEADS} to divide hidden x latent, found {width}"
            )
        if data.normalise is not None and data.action_mask is not None:
            raise ValueError("data.normalise: no mask applies to it; leave out data.action_mask")
        if head.low >= head.high:
            raise ValueError("action_head.low: expected a value below action_head.high")
        if self.data.frames_in_memory < self.window:
            raise ValueError(
                f"data.frames_in_memory: expected at least the window's {self.window} steps"
            )

    @property
    def state_setting(self) -> str | None:
        """The setting that gives the robot's state to the model; None where it is not given."""
        head = self.action_head
        if head.is_policy_head:
            return "action_head.state" if head.state else None
        return "action_head.proprio" if head.kind == "oft" and head.proprio else None

    @property
    def window(self) -> int:
        """Steps that one sample holds."""
        return (self.data.window or _WINDOW) if self.action_head.is_policy_head else 1

    @property
    def chunk(self) -> int:
        """Actions for each step of a sample."""
        return 1 if self.action_head.kind == "tokens" else self.action_head.chunk

    @property
    def regresses(self) -> bool:
        """Whether actions are numbers rather than tokens."""
        head = self.action_head
        return head.decode == "l1" if head.kind == "oft" else head.kind in ("lstm", "gpt", "fc")

    def row_length(self, shape: "ModelShape") -> int:
        """Tokens of one row.

        Patches, text, and with OFT the slots of the actions and of the robot's state; with a policy
        head all frames of a window.
        """
        length = shape.image_tokens + TEXT_TOKENS
        if self.action_head.is_policy_head:
            own = self.action_head.latent
            if self.action_head.kind == "discrete":
                own = self.chunk * self.action_size
            return self.window * (length + own)
        if self.action_head.kind == "oft":
            length += self.action_head.chunk * self.action_size + self.action_head.proprio
        return length

    @property
    def sequences(self) -> int:
        """Sequences that the language model reads a row as: the frames of a window, but where they
        stand side by side in one."""
        return 1 if self.action_head.history == "interleaved" else self.window

    def scored_tokens(self, shape: "ModelShape") -> int:
        """The tokens of an action and its end, the slots of a chunk, or none of an L1 head's."""
        if self.regresses:
            return 0
        if self.action_head.is_policy_head:
            return self.window * (self.chunk * self.action_size + 1)
        is_chunk = self.action_head.kind == "oft"
        return self.action_head.chunk * self.action_size if is_chunk else self.action_size + 1

    @property
    def fuses_head(self) -> bool:
        """Whether the loss avoids full logits: OpenVLA's uses those of labelled positions only."""
        return False

    @property
    def needs_input_gradients(self) -> bool:
        """Checkpointing that is not reentrant does without."""
        return False

    @property
    def action_size(self) -> int:
        """Size of an action, by its mask or the head, if given there."""
        return self.action_head.size or len(self.data.action_mask or ()) or _ACTION

    def extra_parameters(self, shape: "ModelShape") -> int:
        """Number of parameters of an OFT head and of the projector of the robot's state.

        The head is a linear layer on all slots of a step, two residual blocks, a linear layer, and
        a norm before each.
        """
        if self.action_head.is_policy_head:
            return self._head_parameters(shape.hidden)
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
        """The model's shape with the image tokens of all cameras of a row.

        Towers see the images one by one, and the patches of all of them stand in the sequence; a
        window has them once a frame. Where images may have any size, a policy head's are squares,
        each between two marks.
        """
        tower = shape.towers[0] if shape.towers else None
        if self.action_head.is_policy_head and tower is not None and tower.patch:
            side = IMAGE_SIDE // (tower.patch * tower.merged)
            square = replace(tower, patches=(side * tower.merged) ** 2)
            shape = replace(shape, towers=(square,), image_tokens=side**2 + 2)
        cameras = max(1, len(self.data.cameras))
        seen = cameras * self.window
        if seen < 2:
            return shape
        towers = tuple(
            replace(tower, patches=seen * tower.patches, queries=seen * tower.queries)
            for tower in shape.towers
        )
        return replace(shape, towers=towers, image_tokens=cameras * shape.image_tokens)

    def _head_parameters(self, hidden: int) -> int:
        """Numbers of a policy head, of its action tokens, and of what projects the state."""
        head = self.action_head
        size = HeadSize(
            hidden, head.hidden, self.action_size, self.chunk, head.latent, head.layers,
            self.window, head.pool, head.dropout, head.gripper,
        )  # fmt: skip
        state = (self.action_size + 1) * hidden if head.state else 0
        token = hidden if head.kind != "discrete" and head.reads == "action_token" else 0
        return parameters(head.kind, size) + token + state
