"""Inference with a policy head: one frame at a time, with a memory of each episode."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workloads.engine.pretrained.adapter import load_adapter
from workloads.engine.pretrained.files import Reporter, is_adapter
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.run import Run
from workloads.vla.actions import ActionTokenizer, normalize
from workloads.vla.data.augment import as_served
from workloads.vla.policy import Observation, Policy, checked_state, observed
from workloads.vla.processing import ImageProcessor
from workloads.vla.robovlms import loading
from workloads.vla.robovlms.actions import ActionScale
from workloads.vla.robovlms.heads import GptHead, History, LstmHead
from workloads.vla.robovlms.modeling import PolicyModel
from workloads.vla.robovlms.sequence import TokenSequence, joined, stacked
from workloads.vla.statistics import STATISTICS, action_stats

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrameMemory:
    """What the language model read of an episode's last frames, where it sees them side by side;
    without the one that is being answered."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.reset()

    def reset(self) -> None:
        """Begin a new episode."""
        self.frames: list[TokenSequence] = []

    @property
    def tokens(self) -> int:
        return sum(frame.mask.shape[1] for frame in self.frames)

    def keep(self, frame: TokenSequence) -> None:
        """Add a frame and forget the oldest where the window is full."""
        self.frames = [*self.frames, frame][-(self.window - 1) :] if self.window > 1 else []


class HeadPolicy(Policy):
    """A policy with a head, tokenizer and processor; see `workloads.vla.policy.Policy`."""

    def __init__(
        self,
        model: PolicyModel,
        processor: ImageProcessor,
        tokenizer: Any,
        cameras: Sequence[str],
        crop_area: float = 1.0,
        name: str = "policy",
    ) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.cameras = tuple(cameras)
        self.crop_area = crop_area
        self.name = name
        spec = model.spec
        self.discrete = (
            ActionTokenizer(spec.usable, spec.bins, spec.low, spec.high)
            if spec.is_discrete
            else None
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def unnorm_keys(self) -> tuple[str, ...]:
        return tuple(self.model.norm_stats)

    @property
    def state_size(self) -> int | None:
        return self.model.spec.state_size or None

    @property
    def action_shape(self) -> tuple[int, ...]:
        head = self.model.spec.head
        return (head.chunk, head.size) if self.is_chunked else (head.size,)

    @property
    def is_chunked(self) -> bool:
        return self.model.spec.head.chunk > 1

    @property
    def remembers(self) -> bool:
        spec = self.model.spec
        if spec.window == 1 or spec.history == "none":
            return False
        return spec.history == "interleaved" or self.model.act_head.remembers

    @property
    def binary(self) -> tuple[int, ...]:
        head = self.model.spec.head
        return (head.size - 1,) if head.gripper else ()

    def action_statistics(self, unnorm_key: str | None) -> Mapping[str, Any]:
        return action_stats(self.model.norm_stats, unnorm_key)

    def new_memory(self) -> History | FrameMemory | None:
        if not self.remembers:
            return None
        if self.model.spec.history == "interleaved":
            return FrameMemory(self.model.spec.window)
        head = self.model.act_head
        assert isinstance(head, LstmHead | GptHead)
        return History(head, self.model.spec.window)

    @torch.inference_mode()
    def act(
        self,
        observations: Sequence[Observation],
        unnorm_key: str | None = None,
        memories: Sequence[Any] | None = None,
    ) -> np.ndarray:
        scale = self.scale(unnorm_key)
        # All of them are checked before a memory changes.
        inputs = [self.inputs(observation, unnorm_key) for observation in observations]
        if memories is None:
            memories = [self.new_memory() for _ in observations]
        by_length: dict[tuple[int, int], list[int]] = {}
        for row, given in enumerate(inputs):
            memory = memories[row]
            before = memory.tokens if isinstance(memory, FrameMemory) else 0
            by_length.setdefault((given["input_ids"].shape[-1], before), []).append(row)
        found: dict[int, np.ndarray] = {}
        # Nothing is padded: batches have texts and histories of equal lengths.
        for rows in by_length.values():
            batch = {
                name: torch.stack([inputs[row][name] for row in rows]) for name in inputs[rows[0]]
            }
            made = self._predict(batch, [memories[row] for row in rows], scale)
            found |= dict(zip(rows, made, strict=True))
        return np.stack([found[row] for row in range(len(inputs))])

    def scale(self, unnorm_key: str | None) -> ActionScale:
        """Scale between the dataset's actions and the head's."""
        spec = self.model.spec
        return ActionScale(self.action_statistics(unnorm_key), spec.bounds, spec.head.gripper)

    def inputs(self, observation: Observation, unnorm_key: str | None = None) -> dict[str, Tensor]:
        """The model's inputs for one frame.

        pixel_values float32 [1, cameras, 3, S, S], input_ids int64 [L] and, where the policy takes
        a state, states float32 [1, P], normalised.
        """
        images = [
            as_served(self.processor, image, self.crop_area)
            for image in observed(self.cameras, observation)
        ]
        spec = self.model.spec
        if spec.is_discrete:
            ids = self.model.adapter.action_prompt(
                self.tokenizer, observation.instruction, spec.head.chunk
            )
        else:
            ids = self.model.adapter.prompt(self.tokenizer, observation.instruction)
        found = {
            "pixel_values": torch.from_numpy(np.stack(images)[None]),
            "input_ids": torch.tensor(ids),
        }
        if self.state_size is not None:
            stats = self.model.norm_stats
            key = next(iter(stats)) if unnorm_key is None else unnorm_key
            values = checked_state(observation.state, self.state_size)
            state = normalize(values, stats[key]["proprio"]).astype(np.float32)
            found["states"] = torch.from_numpy(state[None])
        return {
            name: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in found.items()
        }

    def _predict(
        self, batch: Mapping[str, Tensor], memories: Sequence[Any], scale: ActionScale
    ) -> np.ndarray:
        """Frames with texts of one length → float64 [B, chunk, A]."""
        if self.discrete is not None:
            return self._decoded(batch, memories, scale)
        model = self.model
        mask = torch.ones_like(batch["input_ids"])
        if model.spec.history == "interleaved":
            states = self._side_by_side(batch, mask, memories)
        else:
            states, _ = model.states(**batch, attention_mask=mask)
        if isinstance(memories[0], History):
            made = [memory.step(own) for memory, own in zip(memories, states, strict=True)]
            arm = torch.cat([part for part, _ in made])
            logits = [gripper for _, gripper in made if gripper is not None]
            gripper = torch.cat(logits) if logits else None
        else:
            arm, gripper = model.act_head(states[:, -1:])
        opens = None if gripper is None else (gripper[:, 0, :, 0] > 0).cpu().numpy()
        return scale.actions(arm[:, 0].float().cpu().numpy(), opens)

    def _side_by_side(
        self, batch: Mapping[str, Tensor], mask: Tensor, memories: Sequence[Any]
    ) -> Tensor:
        """The states at the action tokens of the newest frames, [B, 1, tokens, D]."""
        model = self.model
        newest = model.embedded(batch["pixel_values"], batch["input_ids"], mask)
        seen = model.adapter.read(model.backbone, _after(memories, newest))
        _remember(memories, newest)
        states = seen[:, -newest.embeds.shape[1] :].unsqueeze(1)
        return model.chosen(states, newest, batch.get("states"))

    def _decoded(
        self, batch: Mapping[str, Tensor], memories: Sequence[Any], scale: ActionScale
    ) -> np.ndarray:
        model, head = self.model, self.model.spec.head
        assert self.discrete is not None
        ids = batch["input_ids"][:, None]
        newest = model.embedded(batch["pixel_values"], ids, torch.ones_like(ids))
        found = model.generate(_after(memories, newest), head.chunk * head.size)
        end = found.new_full((len(found), 1), self.tokenizer.eos_token_id)
        said = model.adapter.embed(model.backbone, torch.cat([found, end], dim=1))
        _remember(memories, newest.continued(said))
        values = self.discrete.decode(found.cpu().numpy())
        values = values.reshape(len(found), head.chunk, head.size)
        if not head.gripper:
            return scale.actions(values, None)
        middle = (self.discrete.edges[0] + self.discrete.edges[-1]) / 2
        return scale.actions(values[..., :-1], values[..., -1] > middle)

    def untrained(self, run: Run | None, report: Reporter) -> "HeadPolicy":
        """The policy before training, for comparison.

        With a run, its model at step 0, where an adapter has no effect; else a model with new
        random weights.
        """
        model = self.model
        made = loading.initial(run, report) if run else loading.random_policy(model.spec, 0)
        made.norm_stats = model.norm_stats
        return HeadPolicy(
            made.to(model.device, model.dtype).eval(),
            self.processor,
            self.tokenizer,
            self.cameras,
            self.crop_area,
            "untrained",
        )


def _after(memories: Sequence[Any], newest: TokenSequence) -> TokenSequence:
    """Frames behind those before them, each row by its own memory, as many tokens in all rows."""
    rows = zip(memories, newest.rows(), strict=True)
    return stacked(
        joined([*([] if memory is None else memory.frames), row]) for memory, row in rows
    )


def _remember(memories: Sequence[Any], newest: TokenSequence) -> None:
    for memory, row in zip(memories, newest.rows(), strict=True):
        if memory is not None:
            memory.keep(row)


def load_policy(
    folder: Path,
    facts: Mapping[str, Any],
    name: str,
    dtype: torch.dtype | None,
    attn: str,
    device: torch.device,
    report: Reporter,
) -> HeadPolicy:
    """Load an exported policy with a head, whole or an adapter.

    Raises UserError where tatara.json does not name the cameras.
    """
    kind = dtype or _dtype(facts, device)
    if is_adapter(folder):
        model = _with_adapter(folder, facts, kind, attn, report)
    else:
        model = loading.load_exported(folder, kind, attn)
    model.norm_stats = read_json(folder / STATISTICS)
    cameras = facts.get("cameras")
    if not cameras:
        raise UserError(f"{folder}: expected tatara.json to name the cameras, found none; export "
                        "the run once more")  # fmt: skip
    return HeadPolicy(
        model.to(device).eval(),
        loading.image_processor(folder, model.spec.backbone),
        loading.tokenizer(folder),
        cameras,
        facts.get("crop_area", 1.0),
        name,
    )


def _dtype(facts: Mapping[str, Any], device: torch.device) -> torch.dtype:
    """The dtype of computation: float32 on a CPU, that of the written weights on a GPU."""
    if device.type == "cpu":
        return torch.float32
    return _TYPES.get(str(facts.get("dtype")), torch.bfloat16)


def _with_adapter(
    folder: Path, facts: Mapping[str, Any], dtype: torch.dtype, attn: str, report: Reporter
) -> PolicyModel:
    """Load an exported adapter over its base, with the head of its training."""
    model = loading.under_adapter(folder, facts, dtype, attn, report)
    wrapped: Any = load_adapter(model, folder, facts.get("adapter") or "default").eval()
    merged: PolicyModel = wrapped.merge_and_unload()
    return merged
