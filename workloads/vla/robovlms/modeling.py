"""A Kosmos-2 that drives a robot: images and text of each frame, an action token, a head.

A frame is `bos | gripper camera | static camera | text | action token | last position`. Parameters
have RoboVLMs' names below `model.`.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from workloads.errors import UserError
from workloads.vla.robovlms.heads import Head

HistoryKind = Literal["head", "interleaved"]


class Output(NamedTuple):
    """arm [B, W, chunk, 6], gripper logits [B, W, chunk, 1], the language model's states at the
    action tokens [B, W, latent, D], and the mask it was given, int64 [sequences, tokens]."""

    arm: Tensor
    gripper_logits: Tensor
    action_states: Tensor
    attention_mask: Tensor


class KosmosPolicy(nn.Module):
    """history "head": each frame is a sequence of its own and the head sees those of a window;
    "interleaved": the frames of a window are one sequence."""

    def __init__(
        self,
        backbone: Kosmos2ForConditionalGeneration,
        head: Head,
        history: HistoryKind = "head",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.act_head = head
        self.history = history
        width = backbone.config.text_config.embed_dim
        latent = head.size.latent
        self.action_token = nn.Parameter(torch.zeros(width))
        self.latent = latent
        # Under sdpa, transformers 5.17 takes this cross-attention for a causal one: the first
        # queries would see the first pixels only.
        backbone.image_to_text_projection.x_attn.is_causal = False

    @classmethod
    def from_config(
        cls,
        config: Kosmos2Config,
        head: Head,
        history: HistoryKind = "head",
        attention: str = "sdpa",
    ) -> "KosmosPolicy":
        """With random weights; attention: sdpa or eager."""
        config._attn_implementation = attention
        return cls(Kosmos2ForConditionalGeneration(config), head, history)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] → [N, tokens, D]."""
        backbone = self.backbone
        seen = backbone.vision_model(pixel_values=pixels).last_hidden_state
        seen = backbone.vision_model.model.post_layernorm(seen)
        tokens, _ = backbone.image_to_text_projection(nn.functional.normalize(seen, dim=-1))
        return tokens

    def embedded(
        self, static: Tensor, text: Tensor, text_mask: Tensor, gripper: Tensor | None = None
    ) -> tuple[Tensor, Tensor, int]:
        """What the language model reads of each frame.

        static, gripper: normalised pixels [B, W, 3, S, S]; text, text_mask: int64 [B, L], bos
        first, padded on the right. Gives [B · W, T, D], not yet scaled, the mask [B · W, T], and
        the place of the first action token. In a padded row that is behind eos and all pads but
        one, as in the published training.
        """
        if text.shape[1] < 2:
            raise UserError(f"expected a text of bos, words and eos, found {text.shape[1]} tokens")
        steps = static.shape[1]
        words = self.backbone.text_model.model.embed_tokens(text).repeat_interleave(steps, dim=0)
        mask = text_mask.repeat_interleave(steps, dim=0)
        cameras = [static] if gripper is None else [gripper, static]
        images = [self.image_tokens(camera.flatten(0, 1)) for camera in cameras]
        action = self.action_token.expand(len(words), self.latent, -1)
        parts = [words[:, :1], *images, words[:, 1:-1], action, words[:, -1:]]
        seen = [mask.new_ones(part.shape[:2]) for part in (*images, action)]
        masks = [mask[:, :1], *seen[:-1], mask[:, 1:-1], seen[-1], mask[:, -1:]]
        embeds = torch.cat(parts, dim=1)
        return embeds, torch.cat(masks, dim=1), embeds.shape[1] - 1 - self.latent

    def states(
        self, static: Tensor, text: Tensor, text_mask: Tensor, gripper: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states at the action tokens, [B, W, latent, D], and the mask that was used."""
        samples, steps = static.shape[:2]
        embeds, mask, place = self.embedded(static, text, text_mask, gripper)
        if self.history == "interleaved":
            embeds = embeds.reshape(samples, -1, embeds.shape[-1])
            mask = mask.reshape(samples, -1)
        found = self.backbone.text_model.model(inputs_embeds=embeds, attention_mask=mask)
        by_frame = found.last_hidden_state.reshape(samples, steps, -1, embeds.shape[-1])
        return by_frame[:, :, place : place + self.latent], mask

    def forward(
        self, static: Tensor, text: Tensor, text_mask: Tensor, gripper: Tensor | None = None
    ) -> Output:
        """See `embedded` for what is given."""
        states, mask = self.states(static, text, text_mask, gripper)
        arm, logits = self.act_head(states)
        return Output(arm, logits, states, mask)
