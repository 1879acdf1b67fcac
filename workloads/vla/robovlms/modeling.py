"""A vision-language model that drives a robot: images and text of each frame, and a head.

A frame is `bos | last camera … first camera | text | action token | eos`, or as its adapter says;
discrete actions are ids at the end of the text. Parameters have RoboVLMs' names below `model.`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from workloads.errors import UserError
from workloads.vla.processing import IGNORE_INDEX
from workloads.vla.robovlms.backbones import backbone_of
from workloads.vla.robovlms.heads import FcHead, GptHead, Head, LstmHead, policy_loss
from workloads.vla.robovlms.sequence import TokenSequence
from workloads.vla.robovlms.spec import MODEL_TYPE, PolicySpec

HEADS: Mapping[str, type[Head]] = {"lstm": LstmHead, "fc": FcHead, "gpt": GptHead}
_BASE = "backbone."
_MAX_SHARD = "5GB"


class PolicyConfig(PreTrainedConfig):
    """Config for transformers' own tools; the model is defined by `PolicySpec`."""

    model_type = MODEL_TYPE


@dataclass
class PolicyOutput(ModelOutput):
    """The result for B windows of W frames.

    arm [B, W, chunk, numbers] in −1..1; gripper_logits [B, W, chunk, 1]; action_states [B, W,
    tokens, D]: input of the head; attention_mask int64 [sequences, tokens]: of the language model;
    logits [n, vocabulary] and targets [n]: of discrete actions; loss and
    its parts where there were labels.
    """

    loss: Tensor | None = None
    loss_arm: Tensor | None = None
    loss_gripper: Tensor | None = None
    gripper_accuracy: Tensor | None = None
    arm: Tensor | None = None
    gripper_logits: Tensor | None = None
    action_states: Tensor | None = None
    attention_mask: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None


class PolicyModel(PreTrainedModel):
    """history "head": each frame is a sequence of its own and the head sees those of a window;
    "none": the head sees each frame alone; "interleaved": the frames of a window are one sequence.
    """

    config_class = PolicyConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, spec: PolicySpec, backbone: PreTrainedModel) -> None:
        config = PolicyConfig()
        config._attn_implementation_internal = backbone.config._attn_implementation
        super().__init__(config)
        self.spec = spec
        self.adapter = backbone_of(str(backbone.config.model_type), "config.json")
        self.backbone = backbone
        self.adapter.prepare(backbone)
        self.norm_stats: Mapping[str, Any] = {}
        width = self.adapter.features(backbone.config)
        if not spec.is_discrete:
            self.act_head = HEADS[spec.kind](spec.head)
            if spec.reads == "action_token":
                self.action_token = nn.Parameter(torch.zeros(width))
        if spec.state_size:
            self.state_projector = nn.Linear(spec.state_size, width)
        self.post_init()
        # transformers collects these from the classes of all parts; FSDP refuses missing ones.
        there = {type(module).__name__ for module in self.modules()}
        gathered: set[str] = set(backbone._no_split_modules or ())
        self._no_split_modules = sorted(there & gathered)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: backbone and head have their weights already."""

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    @staticmethod
    def is_head(name: str) -> bool:
        """Whether a parameter belongs to the head rather than to the backbone."""
        return not name.startswith(_BASE)

    @property
    def latent(self) -> int:
        """Action tokens a frame."""
        own = not self.spec.is_discrete and self.spec.reads == "action_token"
        return self.spec.head.latent if own else 0

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] → [N, tokens, D]."""
        return self.adapter.image_tokens(self.backbone, pixels)

    @property
    def answer(self) -> int:
        """Ids of a frame's discrete actions and their end."""
        head = self.spec.head
        return head.chunk * head.size + 1 if self.spec.is_discrete else 0

    def embedded(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, answer: int = 0
    ) -> TokenSequence:
        """What the language model reads of each frame.

        pixel_values: normalised [B, W, cameras, 3, S, S]; input_ids, attention_mask: int64 [B, L],
        or [B, W, L] where the frames differ, padded on the right; answer: how many ids at the end
        of each text are discrete actions. Raises UserError for a text without words.
        """
        samples, steps, cameras = pixel_values.shape[:3]
        opening, closing = self.adapter.opening, self.adapter.closing
        if input_ids.shape[-1] < opening + closing + 1:
            raise UserError(f"expected a text with words, found {input_ids.shape[-1]} tokens")
        if input_ids.ndim == 2:
            input_ids = input_ids.repeat_interleave(steps, dim=0)
            attention_mask = attention_mask.repeat_interleave(steps, dim=0)
        ids, mask = input_ids.flatten(0, -2), attention_mask.flatten(0, -2)
        words = self.adapter.embed(self.backbone, ids)
        # The first camera is next to the text.
        seen = [
            self.image_tokens(pixel_values[:, :, camera].flatten(0, 1))
            for camera in reversed(range(cameras))
        ]
        rest, rest_mask, action = self._with_action(words[:, opening:], mask[:, opening:], answer)
        embeds = torch.cat([words[:, :opening], *seen, rest], dim=1)
        images = sum(part.shape[1] for part in seen)
        whole = torch.cat([mask[:, :opening], mask.new_ones(len(mask), images), rest_mask], dim=1)
        is_image = whole.new_zeros(whole.shape, dtype=torch.bool)
        is_image[:, opening : opening + images] = True
        is_action = functional.pad(action, (opening + images, 0))
        return TokenSequence(embeds, whole, is_image, is_action, torch.zeros_like(whole))

    def _with_action(
        self, words: Tensor, mask: Tensor, answer: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The text behind the images with the action token in it, its mask, and where actions
        stand."""
        latent, closing, length = self.latent, self.adapter.closing, words.shape[1]
        ends = mask.sum(dim=1)
        if not latent:
            at = torch.arange(length, device=mask.device)[None]
            return words, mask, (at >= ends[:, None] - answer) & (at < ends[:, None])
        token = self.action_token.to(words.dtype).expand(len(words), latent, -1)
        whole = torch.cat([words, token], dim=1)
        whole_mask = torch.cat([mask, mask.new_ones(len(mask), latent)], dim=1)
        if not self.spec.action_before_eos:
            ends = torch.full_like(ends, length)
        place = (ends - closing)[:, None]
        at = torch.arange(length + latent, device=mask.device)[None]
        is_action = (at >= place) & (at < place + latent)
        behind = torch.where(is_action, length + at - place, at - latent)
        order = torch.where(at < place, at, behind)
        rows = torch.arange(len(words), device=mask.device)[:, None]
        return whole[rows, order], whole_mask[rows, order], is_action

    def read(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, TokenSequence, Tensor]:
        """The states of all tokens [B, W, T, D], what was read of each frame, and the mask that was
        used."""
        samples, steps = pixel_values.shape[:2]
        frames = self.embedded(pixel_values, input_ids, attention_mask, self.answer)
        tokens = frames
        if self.spec.history == "interleaved":
            tokens = frames.side_by_side(samples)
        found = self.adapter.read(self.backbone, tokens)
        return found.reshape(samples, steps, -1, found.shape[-1]), frames, tokens.mask

    def states(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The head's input [B, W, tokens, D], and the mask of the language model.

        states: the robot's, normalised, [B, W, P].
        """
        found, frames, mask = self.read(pixel_values, input_ids, attention_mask)
        return self.chosen(found, frames, states), mask

    def chosen(self, found: Tensor, frames: TokenSequence, states: Tensor | None) -> Tensor:
        """Of the states of all tokens [B, W, T, D] those that the head is given."""
        shape = (*found.shape[:2], -1)
        if self.latent:
            first = frames.actions.int().argmax(dim=1, keepdim=True)
            at = first + torch.arange(self.latent, device=first.device)
            at = at.reshape(*shape, 1).expand(-1, -1, -1, found.shape[-1])
            found = found.gather(2, at)
        elif self.spec.reads == "vision":
            # They stand at the same places in every row.
            found = found[:, :, frames.images[0]]
        else:
            wanted = {"all": frames.mask > 0, "text": frames.text}[self.spec.reads]
            # The head takes the largest: what is not wanted must not be it.
            least = torch.finfo(found.dtype).min
            found = found.masked_fill(~wanted.reshape(shape)[..., None], least)
        if self.spec.state_size and states is not None:
            found = found + self.state_projector(states.to(found.dtype))[:, :, None]
        return found

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        states: Tensor | None = None,
        actions: Tensor | None = None,
        valid: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> PolicyOutput:
        """See `embedded` and `states` for the inputs.

        actions: normalised [B, W, chunk, A], a gripper 0 or 1; valid bool [B, W, chunk]: which of
        them count; labels int64 [B, W, L]: of discrete actions, −100 where nothing is learnt.
        """
        if self.spec.is_discrete:
            return self._discrete(pixel_values, input_ids, attention_mask, labels)
        found, mask = self.states(pixel_values, input_ids, attention_mask, states)
        arm, gripper = self._head(found)
        output = PolicyOutput(
            arm=arm, gripper_logits=gripper, action_states=found, attention_mask=mask
        )
        if actions is not None:
            split = self.spec.head.size - self.spec.head.gripper
            opens = actions[..., -1] if self.spec.head.gripper else None
            loss = policy_loss(
                arm, gripper, actions[..., :split], opens, valid, self.spec.gripper_weight
            )
            output.loss, output.loss_arm = loss.total, loss.arm.detach()
            output.loss_gripper = loss.gripper.detach()
            output.gripper_accuracy = loss.gripper_accuracy
        return output

    def _head(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.spec.history == "head":
            return self.act_head(states)
        # Steps do not see each other in the head: history is in the sequence, or nowhere.
        samples, steps = states.shape[:2]
        arm, gripper = self.act_head(states.flatten(0, 1).unsqueeze(1))
        arm = arm.unflatten(0, (samples, steps)).squeeze(2)
        return arm, None if gripper is None else gripper.unflatten(0, (samples, steps)).squeeze(2)

    def _discrete(
        self, pixel_values: Tensor, input_ids: Tensor, mask: Tensor, labels: Tensor | None
    ) -> PolicyOutput:
        states, _, used = self.read(pixel_values, input_ids, mask)
        output = PolicyOutput(attention_mask=used)
        if labels is not None:
            text = states[..., -(labels.shape[-1] - self.adapter.opening) - 1 : -1, :]
            wanted = labels[..., self.adapter.opening :]
            keep = wanted != IGNORE_INDEX
            output.targets = wanted[keep]
            output.logits = self.adapter.logits(self.backbone, text[keep])
            output.loss = discrete_loss(output.logits, output.targets)
            output.loss_arm = output.loss.detach()
        return output

    @torch.inference_mode()
    def generate(self, tokens: TokenSequence, count: int) -> Tensor:
        """Greedily decode `count` ids after N sequences: int64 [N, count]."""
        cache = DynamicCache()
        ids: list[Tensor] = []
        for _ in range(count):
            states = self.adapter.read(self.backbone, tokens, cache)
            ids.append(self.adapter.logits(self.backbone, states[:, -1]).argmax(dim=-1))
            newest = self.adapter.embed(self.backbone, ids[-1][:, None])
            tokens = replace(tokens.continued(newest), embeds=newest)
        return torch.stack(ids, dim=1)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **_options: Any,
    ) -> None:
        """Write config.json and safetensors.

        `state_dict`, of the model's shapes, replaces the model's own.
        """
        if is_main_process:
            write(Path(save_directory), self.state_dict() if state_dict is None else state_dict,
                  self.spec, self.all_tied_weights_keys)  # fmt: skip


def discrete_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits [n, vocabulary] and the ids [n] they predict; 0 without any."""
    total = functional.cross_entropy(logits.float(), targets, reduction="sum")
    return total / max(1, len(targets))


def write(
    folder: Path, state: Mapping[str, Tensor], spec: PolicySpec, tied: Mapping[str, str]
) -> None:
    """Write weights, of their own shapes and without tied ones, and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: value.detach().contiguous() for name, value in state.items() if name not in tied}
    plan = split_torch_state_dict_into_shards(own, max_shard_size=_MAX_SHARD)
    for name, keys in plan.filename_to_tensors.items():
        save_file({key: own[key] for key in keys}, folder / name, metadata={"format": "pt"})
    # Files of an earlier save with other shards would be loaded as part of this one.
    for file in folder.glob("model*.safetensors"):
        if file.name not in plan.filename_to_tensors:
            file.unlink()
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(folder / "model.safetensors.index.json", index)
    kinds = {value.dtype for value in own.values() if value.is_floating_point()}
    fields = spec.as_fields()
    fields["torch_dtype"] = str(max(kinds, key=lambda kind: kind.itemsize)).removeprefix("torch.")
    _write_json(folder / "config.json", fields)


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
