"""OpenVLA in plain PyTorch around transformers' Llama, under the published parameter names.

The projected patches stand after the first token (`<s>`) of the prompt; attention is causal, and
the loss is the cross entropy of the next token where labels are not -100.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from workloads.errors import UserError
from workloads.vla.actions import ActionTokenizer, unnormalize
from workloads.vla.openvla import layout
from workloads.vla.openvla.config import OftSpec, OpenVLASpec
from workloads.vla.openvla.vision import VisionBackbone
from workloads.vla.processing import EOS_TOKEN_ID, IGNORE_INDEX, SPACE_TOKEN_ID
from workloads.vla.statistics import action_size, action_stats

ATTENTION = ("eager", "sdpa", "flash_attention_2")


class OpenVLAConfig(PreTrainedConfig):
    """Config for transformers' own tools; the model is defined by `OpenVLASpec`."""

    model_type = "openvla"
    sub_configs = {"text_config": LlamaConfig}


@dataclass
class OpenVLAOutput(ModelOutput):
    """The result of a forward pass over B samples and S = prompt + patches positions.

    logits: [B, S, vocabulary], or [n, vocabulary] at the n labelled positions alone where
    `label_logits_only` is set; targets: [n], the labels those n predict; last_hidden_state:
    [B, S, hidden] after the final norm; projector_features: [B, patches, hidden].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None
    last_hidden_state: Tensor | None = None
    projector_features: Tensor | None = None


class Projector(nn.Module):
    """Patch features → Llama's width: two linear layers for one tower, three for two."""

    def __init__(self, spec: OpenVLASpec, width: int) -> None:
        super().__init__()
        first = 4 * spec.vision_width if spec.fused else width
        self.fused = spec.fused
        self.fc1 = nn.Linear(spec.vision_width, first)
        self.fc2 = nn.Linear(first, width)
        self.act_fn1 = nn.GELU()
        if spec.fused:
            self.fc3 = nn.Linear(width, width)
            self.act_fn2 = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        """[B, patches, vision_width] → [B, patches, width]."""
        out: Tensor = self.fc2(self.act_fn1(self.fc1(features)))
        if self.fused:
            out = self.fc3(self.act_fn2(out))
        return out


class OpenVLA(PreTrainedModel):
    """OpenVLA; build it with `load_pretrained` or `random_init`, never by hand.

    Parameters that the forward pass never uses stay frozen, so that DDP needs no search for them.
    `label_logits_only` makes the forward pass with labels compute logits at labelled positions
    alone. `norm_stats` is the action statistics by dataset, `dataset_statistics.json`'s layout.
    """

    config_class = OpenVLAConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["LlamaDecoderLayer", "Block"]
    # The loss is divided by `num_items_in_batch` if the trainer gives it.
    accepts_loss_kwargs = True

    def __init__(self, spec: OpenVLASpec, attn: str) -> None:
        text_config = LlamaConfig(**{**spec.text, "use_cache": False}, attn_implementation=attn)
        super().__init__(
            OpenVLAConfig(
                text_config=text_config,
                pad_token_id=spec.pad_token_id,
                architectures=["OpenVLAForActionPrediction"],
                attn_implementation=attn,
            )
        )
        self.spec = spec
        self.oft: OftSpec | None = None
        self.norm_stats: Mapping[str, Any] = spec.norm_stats
        self.label_logits_only = False
        self.action_tokenizer = ActionTokenizer(spec.action_vocab_size, spec.action_bins)
        self.vision_backbone = VisionBackbone(spec, fused_attention=attn != "eager")
        self.projector = Projector(spec, text_config.hidden_size)
        self.language_model = LlamaForCausalLM(text_config)
        self.post_init()
        self.parameter_names = frozenset(self.state_dict())
        self.freeze_unused()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def unused_modules(self) -> list[str]:
        """Names of the modules whose parameters the forward pass never uses."""
        return [f"vision_backbone.{name}" for name in self.vision_backbone.unused()]

    def heads(self) -> list[nn.Module]:
        """The modules that the published base checkpoint does not have."""
        return [module for name, module in self.named_children() if name in layout.HEADS]

    def freeze_unused(self) -> None:
        """Freeze the parameters that never get a gradient."""
        for name in self.unused_modules():
            self.get_submodule(name).requires_grad_(False)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        max_shard_size: str = layout.MAX_SHARD_SIZE,
        **_options: Any,
    ) -> None:
        """Write the published layout: key names, shapes and config.json fields.

        The arguments are those that trainers give: `state_dict` stands in for the model's own, as
        gathered from shards; `dtype` casts on the way. Raises UserError where parameters are
        missing or foreign, such as adapters that were not merged.
        """
        if not is_main_process:
            return
        state = self.state_dict() if state_dict is None else state_dict
        layout.check_names(self.parameter_names, state, "the model to save")
        if dtype is not None:
            state = {name: tensor.to(dtype) for name, tensor in state.items()}
        folder = Path(save_directory)
        layout.write(folder, state, self.spec, self.norm_stats, self.oft, max_shard_size)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> OpenVLAOutput:
        """pixel_values [B, C, H, W]; input_ids, attention_mask, labels [B, L]."""
        features = self.projector(self.vision_backbone(pixel_values))
        embeddings = self.get_input_embeddings()(input_ids)
        hidden = self.language_model.model(
            inputs_embeds=_after_first(embeddings, features),
            attention_mask=multimodal_mask(attention_mask, features.shape[1]),
            use_cache=False,
        ).last_hidden_state
        output = OpenVLAOutput(last_hidden_state=hidden)
        if self.spec.output_projector_states:
            output.projector_features = features
        if labels is not None:
            labels = multimodal_labels(labels, features.shape[1])
        self._add_logits(output, hidden, labels, num_items_in_batch)
        return output

    def _add_logits(
        self,
        output: OpenVLAOutput,
        hidden: Tensor,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None,
    ) -> None:
        if labels is None:
            output.logits = self.language_model.lm_head(hidden)
            return
        keep = labels[:, 1:] != IGNORE_INDEX
        targets = labels[:, 1:][keep]
        if self.label_logits_only:
            output.logits = logits = self.language_model.lm_head(hidden[:, :-1][keep])
        else:
            output.logits = self.language_model.lm_head(hidden)
            logits = output.logits[:, :-1][keep]
        output.targets = targets
        output.loss = token_loss(logits, targets, num_items_in_batch)

    @torch.inference_mode()
    def generate_action_ids(
        self, input_ids: Tensor, pixel_values: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """Greedily decode `count` ids for each of B unpadded prompts of one length.

        Returns ids [B, count] and the logits they were chosen by [B, count, vocabulary].
        """
        cache = DynamicCache(config=self.language_model.config)
        features = self.projector(self.vision_backbone(pixel_values))
        embeddings = _after_first(self.get_input_embeddings()(input_ids), features)
        ids, logits = [], []
        for _ in range(count):
            hidden = self.language_model.model(
                inputs_embeds=embeddings, past_key_values=cache, use_cache=True
            ).last_hidden_state
            logits.append(self.language_model.lm_head(hidden[:, -1]))
            ids.append(logits[-1].argmax(dim=-1))
            embeddings = self.get_input_embeddings()(ids[-1][:, None])
        return torch.stack(ids, dim=1), torch.stack(logits, dim=1)

    def predict_actions(
        self,
        input_ids: Tensor | np.ndarray,
        pixel_values: Tensor | np.ndarray,
        unnorm_key: str | None = None,
        norm_stats: Mapping[str, Any] | None = None,
        attention_mask: Tensor | np.ndarray | None = None,
    ) -> np.ndarray:
        """The actions of B prompts of one length: float64 [B, action_dim] in the robot's units.

        Token 29871 is added to prompts that do not end with it. `norm_stats` replaces the
        checkpoint's own; `unnorm_key` may be left out where there is only one dataset. Raises
        UserError for an unknown key, a padded prompt, or a model that ends the action early.
        """
        stats = action_stats(self.norm_stats if norm_stats is None else norm_stats, unnorm_key)
        ids = prompt_ids(input_ids, attention_mask).to(self.device)
        pixels = torch.as_tensor(pixel_values).to(self.device)
        with evaluating(self):
            generated, _ = self.generate_action_ids(ids, pixels, action_size(stats))
        found = generated.cpu().numpy()
        if (found == EOS_TOKEN_ID).any():
            step = int(np.argwhere(found == EOS_TOKEN_ID)[0, 1])
            raise UserError(
                f"expected {found.shape[1]} action tokens, found the end of the text after {step}; "
                "train the model on this number of action dimensions or give its own norm_stats"
            )
        return unnormalize(self.action_tokenizer.decode(found), stats)

    def predict_action(
        self,
        input_ids: Tensor | np.ndarray,
        pixel_values: Tensor | np.ndarray,
        unnorm_key: str | None = None,
        norm_stats: Mapping[str, Any] | None = None,
        attention_mask: Tensor | np.ndarray | None = None,
    ) -> np.ndarray:
        """The action for one prompt [1, L] and image [1, C, H, W]: float64 [action_dim].

        Raises UserError for several prompts.
        """
        if len(input_ids) != 1:
            raise UserError(
                f"expected one prompt, found {len(input_ids)}; use predict_actions for several"
            )
        return self.predict_actions(
            input_ids, pixel_values, unnorm_key, norm_stats, attention_mask
        )[0]


def token_loss(logits: Tensor, targets: Tensor, items: Tensor | int | None = None) -> Tensor:
    """Cross entropy in float32: the mean over [n] targets, or their sum divided by `items`."""
    if items is None:
        return functional.cross_entropy(logits.float(), targets)
    return functional.cross_entropy(logits.float(), targets, reduction="sum") / items


def multimodal_mask(mask: Tensor | None, patches: int) -> Tensor | None:
    """Make room in an attention mask [B, L] for the patches after the first token."""
    if mask is None:
        return None
    return _after_first(mask, mask.new_ones(len(mask), patches))


def multimodal_labels(labels: Tensor, patches: int) -> Tensor:
    """Make room in labels [B, L] for the patches after the first token; they have none."""
    return _after_first(labels, labels.new_full((len(labels), patches), IGNORE_INDEX))


def _after_first(row: Tensor, inserted: Tensor) -> Tensor:
    return torch.cat([row[:, :1], inserted, row[:, 1:]], dim=1)


def prompt_ids(input_ids: Any, attention_mask: Any = None) -> Tensor:
    """Unpadded prompts [B, L] that end with token 29871, added where it is missing.

    Raises UserError for padded prompts, and for prompts of other shapes or different endings.
    """
    ids = torch.as_tensor(input_ids)
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise UserError(f"expected input_ids [batch, length], found shape {list(ids.shape)}")
    if attention_mask is not None and not bool(torch.as_tensor(attention_mask).all()):
        raise UserError(
            "expected unpadded prompts, found zeros in the attention mask; "
            "give prompts of one length together"
        )
    ends = ids[:, -1] == SPACE_TOKEN_ID
    if ends.all():
        return ids
    if ends.any():
        raise UserError(
            "expected prompts of one length, found some that end with token 29871 and some not; "
            "end all of them alike"
        )
    return torch.cat([ids, ids.new_full((len(ids), 1), SPACE_TOKEN_ID)], dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context with the model in evaluation mode; restores training mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
