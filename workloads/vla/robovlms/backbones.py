"""Vision-language models that a policy head can sit on: one adapter a family.

An adapter knows how its model computes image tokens, how it takes embeddings instead of ids, and
the form of its prompts; everything else is shared.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from workloads.errors import UserError
from workloads.vla.robovlms.sequence import TokenSequence
from workloads.vla.robovlms.spec import IMAGE_SIDE

_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_MOST_TOKENS = 512


class Backbone(Protocol):
    """opening: tokens of a text that stand in front of the images; closing: those that stand behind
    the action token."""

    opening: int
    closing: int

    def attention(self, config: Any) -> str | None:
        """What `model.attention=auto` has to be, where frames are read rightly by one kind only."""

    def prepare(self, model: nn.Module) -> None:
        """Correct what the library gets wrong, once, after the model has been made.

        Raises UserError for a model that cannot be read rightly.
        """

    def features(self, config: Any) -> int:
        """Width of a token's features, by the model's config."""

    def unused(self, model: nn.Module) -> list[str]:
        """Modules whose parameters a policy never uses."""

    def image_tokens(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, S, S] → [N, tokens, width]."""

    def embed(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Ids [..., L] → [..., L, width], as the language model takes them."""

    def language(self, model: nn.Module) -> nn.Module:
        """The layers that `read` runs."""

    def read(self, model: nn.Module, tokens: TokenSequence, cache: Any = None) -> Tensor:
        """The states [N, T, width] after the last layer, of the embeddings; cache: of the tokens
        before them."""

    def logits(self, model: nn.Module, states: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary]."""

    def prompt(self, tokenizer: Any, instruction: str) -> list[int]:
        """The ids of a frame's text."""

    def action_prompt(self, tokenizer: Any, instruction: str, chunk: int) -> list[int]:
        """The ids of the text before discrete actions, without an end."""

    def image_size(self, config: Any) -> int:
        """Pixels of a side."""

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of pixels, if not in preprocessor_config.json."""


class _Usual:
    """Shared code of most adapters; every token sees earlier ones only."""

    closing = 0

    def attention(self, config: Any) -> str | None:
        return None

    def prepare(self, model: Any) -> None:
        """Nothing to correct."""

    def features(self, config: Any) -> int:
        return int(config.text_config.hidden_size)

    def unused(self, model: Any) -> list[str]:
        return []

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        return model.get_input_embeddings()(ids)

    def language(self, model: Any) -> nn.Module:
        raise NotImplementedError

    def positions(self, model: Any, tokens: TokenSequence) -> Tensor | None:
        """int64 [..., N, T]; None where the model counts itself, padding too."""
        return tokens.positions

    def attended(
        self, model: Any, tokens: TokenSequence, positions: Tensor | None, cache: Any
    ) -> Any:
        """The mask that the layers are given; positions: of the embeddings."""
        return tokens.mask

    def read(self, model: Any, tokens: TokenSequence, cache: Any = None) -> Tensor:
        positions = self.positions(model, tokens)
        if positions is not None:
            positions = positions[..., -tokens.embeds.shape[1] :]
        found = self.language(model)(
            inputs_embeds=tokens.embeds,
            attention_mask=self.attended(model, tokens, positions, cache),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return found.last_hidden_state

    def logits(self, model: Any, states: Tensor) -> Tensor:
        return model.get_output_embeddings()(states)

    def prompt(self, tokenizer: Any, instruction: str) -> list[int]:
        raise NotImplementedError

    def action_prompt(self, tokenizer: Any, instruction: str, chunk: int) -> list[int]:
        return self.prompt(tokenizer, _question(instruction, chunk))

    def image_size(self, config: Any) -> int:
        return int(config.vision_config.image_size)

    def statistics(self) -> tuple[list[float], list[float]]:
        return [0.5] * 3, [0.5] * 3


def _question(instruction: str, steps: int) -> str:
    return f"What {steps} step actions should the robot take to {instruction}?"


class Kosmos(_Usual):
    """Kosmos-2: bos, images, words, action token, eos."""

    opening = 1
    closing = 1

    def prepare(self, model: Any) -> None:
        # With sdpa, transformers 5.17 runs this cross-attention as a causal one: the first
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

    def positions(self, model: Any, tokens: TokenSequence) -> Tensor | None:
        return None

    def prompt(self, tokenizer: Any, instruction: str) -> list[int]:
        return with_ends(tokenizer, f"<grounding>An image of a robot {instruction}")

    def action_prompt(self, tokenizer: Any, instruction: str, chunk: int) -> list[int]:
        # RoboVLMs' own says one step more than it predicts; its models know no other text.
        text = f"In: {_question(instruction, chunk + 1)}\nOut:"
        return with_ends(tokenizer, text)[:-1]

    def statistics(self) -> tuple[list[float], list[float]]:
        return _CLIP


class PaliGemma(_Usual):
    """PaliGemma of both generations: images, bos, words and a newline, which see each other as in
    its pretraining; then the action."""

    opening = 0

    def attention(self, config: Any) -> str | None:
        return "eager" if config.text_config.model_type == "gemma2" else "sdpa"

    def prepare(self, model: Any) -> None:
        text = model.config.text_config
        if text.model_type not in ("gemma", "gemma2"):
            raise UserError(
                f"model.name: expected a PaliGemma on gemma or gemma2, found one on "
                f"{text.model_type!r}; choose another"
            )
        found = text._attn_implementation
        if text.model_type == "gemma2" and found != "eager":
            raise UserError(
                f"model.attention: expected eager, found {found!r}, which leaves out the cap on "
                "PaliGemma 2's attention scores or cannot let its images and words see each "
                "other; set model.attention=eager"
            )
        # By its own name or that of a kernel on the hub.
        if "flash" in found:
            raise UserError(
                f"model.attention: expected sdpa or eager, found {found!r}, which cannot let "
                "PaliGemma's images and words see each other; set model.attention=sdpa"
            )

    def unused(self, model: Any) -> list[str]:
        return ["model.vision_tower.head"] if model.model.vision_tower.use_head else []

    def image_tokens(self, model: Any, pixels: Tensor) -> Tensor:
        return model.get_image_features(pixels).pooler_output

    def language(self, model: Any) -> nn.Module:
        return model.model.language_model

    def positions(self, model: Any, tokens: TokenSequence) -> Tensor | None:
        return tokens.positions + 1

    def attended(
        self, model: Any, tokens: TokenSequence, positions: Tensor | None, cache: Any
    ) -> Any:
        # As PaliGemmaModel.forward of transformers 5.17, which knows one block only.
        arguments = {
            "config": model.config.text_config,
            "inputs_embeds": tokens.embeds,
            "attention_mask": tokens.mask,
            "past_key_values": cache,
            "position_ids": positions,
            "block_sequence_ids": tokens.blocks,
        }
        whole = create_causal_mask(**arguments)
        if model.config.text_config.model_type == "gemma":
            return whole
        sliding = create_sliding_window_causal_mask(**arguments)
        return {"full_attention": whole, "sliding_attention": sliding}

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


class Qwen25Vl(_Usual):
    """Qwen2.5-VL: the beginning of a user's turn, each image between its two marks, the user's
    words, the answer's beginning, and then the action. Images are squares of 224 pixels, or what
    its patches leave of them."""

    opening = 3  # <|im_start|>, user and a newline

    def image_size(self, config: Any) -> int:
        vision = config.vision_config
        token = vision.patch_size * vision.spatial_merge_size
        return int(IMAGE_SIDE // token * token)

    def statistics(self) -> tuple[list[float], list[float]]:
        return _CLIP

    def image_tokens(self, model: Any, pixels: Tensor) -> Tensor:
        vision = model.config.vision_config
        patch, merge = vision.patch_size, vision.spatial_merge_size
        count, side = len(pixels), self._side(model)
        # Patches as its image processor lays them out: the ones that become a token together, and
        # an image is a video of one moment, whose frames are alike.
        cut = pixels.unflatten(3, (side, merge, patch)).unflatten(2, (side, merge, patch))
        cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        cut = cut.expand(*cut.shape[:6], vision.temporal_patch_size, patch, patch)
        grid = torch.tensor([[1, side * merge, side * merge]], device=pixels.device)
        seen = model.model.visual(cut.flatten(5).flatten(0, 4), grid_thw=grid.expand(count, 3))
        marks = torch.tensor(
            [model.config.vision_start_token_id, model.config.vision_end_token_id],
            device=pixels.device,
        )
        first, last = self.embed(model, marks).expand(count, 2, -1).split(1, dim=1)
        return torch.cat([first, seen.pooler_output.unflatten(0, (count, -1)), last], dim=1)

    def language(self, model: Any) -> nn.Module:
        return model.model.language_model

    def _side(self, model: Any) -> int:
        """Tokens of an image's side."""
        vision = model.config.vision_config
        token = vision.patch_size * vision.spatial_merge_size
        return int(self.image_size(model.config) // token)

    def positions(self, model: Any, tokens: TokenSequence) -> Tensor | None:
        """int64 [3, N, T]: time, row and column.

        Of a text all three count on; an image between its marks has one time, its rows and its
        columns, and what follows counts on from its side.
        """
        side = self._side(model)
        numbers = torch.arange(side, device=tokens.mask.device)
        rows, columns = numbers.repeat_interleave(side), numbers.repeat(side)
        inside = torch.stack([torch.zeros_like(rows), rows, columns]) + 1
        marks = inside.new_tensor([0, side + 1]).expand(3, 2)
        image = torch.cat([marks[:, :1], inside, marks[:, 1:]], dim=1)
        of_images = tokens.images.long()
        seen = of_images.cumsum(dim=1) - of_images
        words = tokens.mask * (1 - of_images)
        start = words.cumsum(dim=1) - words + seen // image.shape[1] * (side + 2)
        return start + image[:, seen % image.shape[1]] * of_images

    def prompt(self, tokenizer: Any, instruction: str) -> list[int]:
        begin, said, end = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in ("<|im_start|>user\n", instruction, "<|im_end|>\n<|im_start|>assistant\n")
        )
        return [*begin, *said[: _MOST_TOKENS - len(begin) - len(end)], *end]


def with_ends(tokenizer: Any, text: str) -> list[int]:
    """bos, the text, eos; at most 512 ids, as in the published trainings."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: _MOST_TOKENS - 2]
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]


BACKBONES: Mapping[str, type[Backbone]] = {
    "kosmos-2": Kosmos,
    "paligemma": PaliGemma,
    "smolvlm": SmolVLM,
    "idefics3": SmolVLM,  # what the first generation is to transformers
    "qwen2_5_vl": Qwen25Vl,
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


def usable_tokens(tokenizer: Any) -> int:
    """Ids below the special ones and ten more, the last of which stand for actions."""
    return int(tokenizer.vocab_size) - len(tokenizer.all_special_ids) - 10
