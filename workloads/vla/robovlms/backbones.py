"""Vision-language models that a policy head can sit on: one adapter a family.

An adapter knows how its model makes image tokens, how it takes embeddings in place of ids, and what
its prompts look like; everything else is the same for all.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from workloads.errors import UserError

_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_MOST_TOKENS = 512


class Backbone(Protocol):
    """opening: tokens of a text that stand in front of the images; closing: those that stand behind
    the action token; discrete: whether actions can be tokens of its text."""

    opening: int
    closing: int
    discrete: bool

    def prepare(self, model: nn.Module) -> None:
        """Correct what the library gets wrong, once, after the model has been made."""

    def features(self, config: Any) -> int:
        """Features of a token, by the model's config."""

    def unused(self, model: nn.Module) -> list[str]:
        """Modules whose parameters a policy never uses."""

    def image_tokens(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] → [N, tokens, width]."""

    def embed(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Ids [..., L] → [..., L, width], as the language model takes them."""

    def language(self, model: nn.Module) -> nn.Module:
        """The layers that `read` goes through."""

    def read(
        self,
        model: nn.Module,
        embeds: Tensor,
        mask: Tensor,
        blocks: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Embeddings [B, T, width] → the states after the last layer [B, T, width].

        mask: [B, T], past tokens included; blocks: int64 [B, T], a number for the images and the
        text of one frame, -1 for tokens that see earlier tokens only; cache: of the tokens before.
        """

    def logits(self, model: nn.Module, states: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary]."""

    def prompt(self, tokenizer: Any, instruction: str) -> list[int]:
        """The ids of a frame's text."""

    def image_size(self, config: Any) -> int:
        """Pixels of a side."""

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of the pixels, where preprocessor_config.json does not say them."""


class _Usual:
    """What most of them have in common; every token sees earlier ones only."""

    closing = 0
    discrete = False

    def prepare(self, model: Any) -> None:
        """Nothing is to be corrected."""

    def features(self, config: Any) -> int:
        return int(config.text_config.hidden_size)

    def unused(self, model: Any) -> list[str]:
        return []

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        return model.get_input_embeddings()(ids)

    def language(self, model: Any) -> nn.Module:
        raise NotImplementedError

    def read(
        self,
        model: Any,
        embeds: Tensor,
        mask: Tensor,
        blocks: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        found = self.language(model)(
            inputs_embeds=embeds,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return found.last_hidden_state

    def logits(self, model: Any, states: Tensor) -> Tensor:
        return model.get_output_embeddings()(states)

    def image_size(self, config: Any) -> int:
        return int(config.vision_config.image_size)

    def statistics(self) -> tuple[list[float], list[float]]:
        return [0.5] * 3, [0.5] * 3


class Kosmos(_Usual):
    """Kosmos-2: bos, images, words, action token, eos."""

    opening = 1
    closing = 1
    discrete = True

    def prepare(self, model: Any) -> None:
        # Under sdpa, transformers 5.17 takes this cross-attention for a causal one: the first
        # queries would see the first pixels only.
        model.image_to_text_projection.x_attn.is_causal = False

    def features(self, config: Any) -> int:
        return int(config.text_config.embed_dim)

    def image_tokens(self, model: Any, pixels: Tensor) -> Tensor:
        seen = model.vision_model(pixel_values=pixels).last_hidden_state
        seen = model.vision_model.model.post_layernorm(seen)
        tokens, _ = model.image_to_text_projection(nn.functional.normalize(seen, dim=-1))
        return tokens

    def language(self, model: Any) -> nn.Module:
        return model.text_model.model

    def prompt(self, tokenizer: Any, instruction: str) -> list[int]:
        return with_ends(tokenizer, f"<grounding>An image of a robot {instruction}")

    def statistics(self) -> tuple[list[float], list[float]]:
        return _CLIP


class PaliGemma(_Usual):
    """PaliGemma: images, bos, words and a newline, which see each other as in its pretraining; then
    the action token."""

    opening = 0

    def prepare(self, model: Any) -> None:
        text = model.config.text_config
        if text.model_type != "gemma":
            raise UserError(
                f"model.name: expected a PaliGemma on gemma, found one on {text.model_type!r}, "
                "whose sliding windows are not offered under a policy head; choose another"
            )
        # By its own name or that of a kernel on the hub.
        if "flash" in text._attn_implementation:
            raise UserError(
                f"model.attention: expected sdpa or eager, found {text._attn_implementation!r}, "
                "which cannot let PaliGemma's images and words see each other; set "
                "model.attention=sdpa"
            )

    def unused(self, model: Any) -> list[str]:
        return ["model.vision_tower.head"] if model.model.vision_tower.use_head else []

    def image_tokens(self, model: Any, pixels: Tensor) -> Tensor:
        return model.get_image_features(pixels).pooler_output

    def language(self, model: Any) -> nn.Module:
        return model.model.language_model

    def read(
        self,
        model: Any,
        embeds: Tensor,
        mask: Tensor,
        blocks: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        # As PaliGemmaModel.forward of transformers 5.17, which knows one block only, and counts
        # positions from 1.
        past = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None] + past + 1
        whole = create_causal_mask(
            config=model.config.text_config,
            inputs_embeds=embeds,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=positions,
            block_sequence_ids=blocks,
        )
        found = self.language(model)(
            inputs_embeds=embeds,
            attention_mask=whole,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return found.last_hidden_state

    def prompt(self, tokenizer: Any, instruction: str) -> list[int]:
        ids = tokenizer(f"{instruction}\n", add_special_tokens=False)["input_ids"]
        if len(ids) >= _MOST_TOKENS:
            ids = [*ids[: _MOST_TOKENS - 2], ids[-1]]
        return [tokenizer.bos_token_id, *ids]


class SmolVLM(_Usual):
    """SmolVLM of both generations: a turn's first token, images, the user's words, the answer's
    beginning, and then the action token. An image is never cut into tiles."""

    opening = 1

    def image_tokens(self, model: Any, pixels: Tensor) -> Tensor:
        # Its own get_image_features leaves out images that are all zero.
        seen = model.model.vision_model(pixel_values=pixels).last_hidden_state
        return model.model.connector(seen)

    def language(self, model: Any) -> nn.Module:
        return model.model.text_model

    def prompt(self, tokenizer: Any, instruction: str) -> list[int]:
        end, text = "<end_of_utterance>\nAssistant:", f"<|im_start|>User:{instruction}"
        said = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(end, add_special_tokens=False)["input_ids"]
        return [*said[: _MOST_TOKENS - len(answer)], *answer]


def with_ends(tokenizer: Any, text: str) -> list[int]:
    """bos, the text, eos; at most 512 ids, as in the published trainings."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: _MOST_TOKENS - 2]
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]


BACKBONES: Mapping[str, type[Backbone]] = {
    "kosmos-2": Kosmos,
    "paligemma": PaliGemma,
    "smolvlm": SmolVLM,
    "idefics3": SmolVLM,  # what the first generation is to transformers
}


def backbone_of(kind: str, where: str) -> Backbone:
    """The adapter of a model type.

    Raises UserError for a model type without one.
    """
    if kind not in BACKBONES:
        raise UserError(
            f"{where}: expected a vision-language model of type {', '.join(BACKBONES)} under a "
            f"policy head, found {kind!r}; choose another model.name"
        )
    return BACKBONES[kind]()


def action_prompt(tokenizer: Any, instruction: str, chunk: int) -> list[int]:
    """The text before discrete actions, without an end.

    RoboVLMs' own says one step more than it predicts; its models know no other text.
    """
    text = f"In: What {chunk + 1} step actions should the robot take to {instruction}?\nOut:"
    return with_ends(tokenizer, text)[:-1]


def usable_tokens(tokenizer: Any) -> int:
    """Ids below the special ones and ten more, the last of which stand for actions."""
    return int(tokenizer.vocab_size) - len(tokenizer.all_special_ids) - 10
