"""The OFT head: a chunk of actions in one pass, by L1 regression or by discrete argmax.

After the prompt stand `slots` = chunk x action_dim positions whose embeddings are zero, then
`</s>`. Attention is bidirectional over everything that is no padding. The hidden state one
position BEFORE each slot is what predicts it, as in next-token prediction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.errors import UserError
from workloads.vla.actions import EPSILON, unnormalize
from workloads.vla.openvla.config import OftSpec, OpenVLASpec
from workloads.vla.openvla.modeling import (
    OpenVLA,
    OpenVLAOutput,
    evaluating,
    multimodal_labels,
    multimodal_mask,
    prompt_ids,
)
from workloads.vla.processing import EOS_TOKEN_ID, IGNORE_INDEX
from workloads.vla.statistics import action_stats

# Id in the slots at inference; their embeddings are zeroed, so only the length matters.
PLACEHOLDER_ID = 1


@dataclass
class OftOutput(OpenVLAOutput):
    """predicted_actions: [B, chunk, action_dim], normalised; hidden_states: [B, slots, hidden]."""

    predicted_actions: Tensor | None = None
    actions_hidden_states: Tensor | None = None


class ResidualBlock(nn.Module):
    """x + ReLU(linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width]."""
        out: Tensor = x + self.ffn(x)
        return out


class MlpResNet(nn.Module):
    """[..., inputs] → [..., outputs] through residual blocks of one width."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.relu = nn.ReLU()
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        x = self.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        out: Tensor = self.fc2(self.layer_norm2(x))
        return out


class L1ActionHead(nn.Module):
    """Hidden states [B, slots, hidden] → normalised actions [B, chunk, action_dim]."""

    def __init__(self, oft: OftSpec, hidden: int) -> None:
        super().__init__()
        self.oft = oft
        self.model = MlpResNet(hidden * oft.action_dim, hidden, oft.action_dim, oft.blocks)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, slots, hidden] → [B, chunk, action_dim]."""
        steps = hidden.reshape(len(hidden), self.oft.action_chunk, -1)
        actions: Tensor = self.model(steps)
        return actions


class ProprioProjector(nn.Module):
    """A normalised robot state [B, proprio_dim] → one token [B, 1, hidden]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.act_fn1 = nn.GELU()
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, proprio: Tensor) -> Tensor:
        """[B, proprio_dim] → [B, 1, hidden]."""
        token: Tensor = self.fc2(self.act_fn1(self.fc1(proprio.to(self.fc1.weight.dtype))))
        return token[:, None]


class OpenVLAOft(OpenVLA):
    """OpenVLA with parallel decoding; `oft.head` chooses L1 regression or discrete tokens."""

    def __init__(self, spec: OpenVLASpec, attn: str, oft: OftSpec) -> None:
        super().__init__(spec, attn)
        self.oft: OftSpec = oft
        hidden = self.language_model.config.hidden_size
        if oft.head == "l1":
            self.action_head = L1ActionHead(oft, hidden)
            # The L1 loss never uses it; DDP would wait for its gradient.
            self.language_model.lm_head.requires_grad_(False)
        if oft.proprio_dim is not None:
            self.proprio_projector = ProprioProjector(oft.proprio_dim, hidden)
        self.parameter_names = frozenset(self.state_dict())

    def reset_empty_heads(self, dtype: torch.dtype, device: torch.device) -> None:
        """Give heads without storage PyTorch's default random weights."""
        for head in self.heads():
            if not next(head.parameters()).is_meta:
                continue
            head.to_empty(device=device)
            for module in head.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm):
                    module.reset_parameters()
            head.to(dtype)

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        proprio: Tensor | None = None,
        actions: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> OftOutput:
        """As OpenVLA's, with proprio [B, P] and actions [B, chunk, action_dim], both normalised.

        The slots are where labels hold action ids. The loss is the mean absolute error against
        `actions`, or the tokens' cross entropy for the discrete head. Raises UserError where labels
        are missing, or hold another number of action ids.
        """
        if labels is None:
            raise UserError("expected labels, found none; they say where the action slots are")
        slots = labels >= self.action_tokenizer.first_id
        if not bool((slots.sum(dim=1) == self.oft.slots).all()):
            raise UserError(
                f"expected {self.oft.slots} action labels in each sample "
                f"({self.oft.action_chunk} x {self.oft.action_dim}), found "
                f"{slots.sum(dim=1).tolist()}; build the batch with this chunk"
            )
        hidden, inserted = self._encode(pixel_values, input_ids, attention_mask, slots, proprio)
        spread = multimodal_labels(labels, inserted)
        before = torch.cat([slots[:, 1:], slots.new_zeros(len(slots), 1)], dim=1)
        before = multimodal_labels(before.long(), inserted) == 1
        selected = hidden[before].reshape(len(hidden), self.oft.slots, -1)
        output = OftOutput(last_hidden_state=hidden, actions_hidden_states=selected)
        if self.oft.head == "discrete":
            self._add_logits(output, hidden, spread, num_items_in_batch)
            return output
        output.predicted_actions = self.action_head(selected)
        if actions is not None:
            output.loss = functional.l1_loss(output.predicted_actions.float(), actions.float())
        return output

    def _encode(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        slots: Tensor,
        proprio: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Last hidden states [B, S, hidden] and the number of tokens inserted after the first."""
        inserted = self.projector(self.vision_backbone(pixel_values))
        if (proprio is None) != (self.oft.proprio_dim is None):
            wanted = "none" if self.oft.proprio_dim is None else str(self.oft.proprio_dim)
            raise UserError(
                f"expected proprio dimensions: {wanted}, found "
                f"{'none' if proprio is None else list(proprio.shape)}"
            )
        if proprio is not None:
            inserted = torch.cat([inserted, self.proprio_projector(proprio)], dim=1)
        embeddings = self.get_input_embeddings()(input_ids) * ~slots[..., None]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        count = inserted.shape[1]
        hidden = self.language_model.model(
            inputs_embeds=torch.cat([embeddings[:, :1], inserted, embeddings[:, 1:]], dim=1),
            attention_mask=self._attention(attention_mask, count, embeddings.dtype),
            use_cache=False,
            is_causal=False,
        ).last_hidden_state
        return hidden, count

    def _attention(self, mask: Tensor, inserted: int, dtype: torch.dtype) -> Tensor | None:
        """Attention mask under which every position sees every position that is no padding."""
        mask = multimodal_mask(mask, inserted)
        if self.language_model.config._attn_implementation == "flash_attention_2":
            return mask
        keys = mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1)
        return torch.zeros_like(keys, dtype=dtype).masked_fill(~keys, torch.finfo(dtype).min)

    @torch.inference_mode()
    def predict_chunk(self, ids: Tensor, pixels: Tensor, proprio: Tensor | None) -> np.ndarray:
        """Normalised actions [B, chunk, action_dim], float64, for prompts that end with 29871."""
        count = len(ids)
        slots = ids.new_full((count, self.oft.slots), PLACEHOLDER_ID)
        stop = ids.new_full((count, 1), EOS_TOKEN_ID)
        full = torch.cat([ids, slots, stop], dim=1)
        labels = torch.full_like(full, IGNORE_INDEX)
        labels[:, ids.shape[1] : -1] = self.action_tokenizer.first_id
        hidden, inserted = self._encode(
            pixels, full, None, labels >= self.action_tokenizer.first_id, proprio
        )
        start = ids.shape[1] + inserted - 1
        selected = hidden[:, start : start + self.oft.slots]
        if self.oft.head == "l1":
            return self.action_head(selected).double().cpu().numpy()
        found = self.language_model.lm_head(selected).argmax(dim=-1).cpu().numpy()
        shape = (count, self.oft.action_chunk, self.oft.action_dim)
        return self.action_tokenizer.decode(found).reshape(shape)

    def predict_actions(
        self,
        input_ids: Tensor | np.ndarray,
        pixel_values: Tensor | np.ndarray,
        unnorm_key: str | None = None,
        norm_stats: Mapping[str, Any] | None = None,
        attention_mask: Tensor | np.ndarray | None = None,
        proprio: Tensor | np.ndarray | None = None,
    ) -> np.ndarray:
        """The chunks of B prompts of one length: float64 [B, chunk, action_dim].

        `proprio` [B, P] is the normalised state. Errors as OpenVLA's.
        """
        stats = action_stats(self.norm_stats if norm_stats is None else norm_stats, unnorm_key)
        ids = prompt_ids(input_ids, attention_mask).to(self.device)
        pixels = torch.as_tensor(pixel_values).to(self.device)
        state = None if proprio is None else torch.as_tensor(proprio).to(self.device)
        with evaluating(self):
            normalised = self.predict_chunk(ids, pixels, state)
        return unnormalize(normalised, stats, epsilon=EPSILON)

    def predict_action(
        self,
        input_ids: Tensor | np.ndarray,
        pixel_values: Tensor | np.ndarray,
        unnorm_key: str | None = None,
        norm_stats: Mapping[str, Any] | None = None,
        attention_mask: Tensor | np.ndarray | None = None,
        proprio: Tensor | np.ndarray | None = None,
    ) -> np.ndarray:
        """The chunk for one prompt [1, L], image [1, C, H, W] and state [1, P].

        Returns float64 [chunk, action_dim]. Raises UserError for several prompts.
        """
        if len(input_ids) != 1:
            raise UserError(
                f"expected one prompt, found {len(input_ids)}; use predict_actions for several"
            )
        return self.predict_actions(
            input_ids, pixel_values, unnorm_key, norm_stats, attention_mask, proprio
        )[0]
