"""Language and vision-language models with their tokenizers or processors, as a profile asks.

Which of the two a model is follows from its own config, never from its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from workloads.config.sections import Model
from workloads.engine.generate import Prompt, generate
from workloads.engine.pretrained import load
from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.chat import chosen_template, fixed
from workloads.engine.pretrained.files import Reporter
from workloads.errors import UserError
from workloads.grpo.config import GrpoConfig
from workloads.grpo.objective import Grpo
from workloads.grpo.prompts import Turns, in_parts

# Names of vision towers in models; Qwen's contains its projector, the merger, too.
_TOWERS = frozenset(("visual", "vision_tower", "vision_model"))
Processing: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin


def sees_images(own: PreTrainedConfig) -> bool:
    """Whether a model of this config takes images beside text."""
    known = type(own) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return known and "vision_config" in type(own).sub_configs


def check_options(own: PreTrainedConfig, config: GrpoConfig) -> None:
    """Raise UserError for settings that TRL (1.16) takes with other kinds of models only."""
    if config.stage != "grpo":
        return
    is_mixture = hasattr(own.get_text_config(), "output_router_logits")
    if config.grpo.router_aux_loss_coef and not is_mixture:
        raise UserError(
            f"grpo.router_aux_loss_coef: expected a mixture of experts, found {own.model_type}; "
            "leave it out"
        )
    is_wrapped = config.adapter.method != "full" or sees_images(own)
    configs = (own, own.get_text_config())
    is_tied = any(getattr(one, "tie_word_embeddings", False) for one in configs)
    if config.grpo.cast_lm_head_to_fp32 and is_tied and is_wrapped:
        raise UserError(
            "grpo.cast_lm_head_to_fp32: where the embeddings are the last layer too, TRL takes "
            "neither an adapter nor a vision tower with it; leave it out"
        )


def tokenizer_of(processing: Processing) -> PreTrainedTokenizerBase:
    """The tokenizer itself, or the one inside a processor."""
    return processing.tokenizer if isinstance(processing, ProcessorMixin) else processing


def placeholders(processing: Processing) -> list[str]:
    """The tokens that stand for images and videos in a prompt; none for a language model."""
    if not isinstance(processing, ProcessorMixin):
        return []
    tokens = (getattr(processing, name, None) for name in ("image_token", "video_token"))
    return [token for token in tokens if token]


def prompt_texts(
    processing: Processing,
    turns: Sequence[Turns],
    tools: Sequence[dict[str, Any]] = (),
    switches: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """The conversations by the model's own chat template, up to where the answer begins.

    A processor gets parts even for text, as in TRL. tools: their schemas.
    switches: those of the template that are not in it already.
    """
    if isinstance(processing, ProcessorMixin):
        turns = [in_parts(conversation) for conversation in turns]
    settings: dict[str, Any] = {"tools": list(tools) or None, "tokenize": False}
    settings |= {"add_generation_prompt": True, **fixed(processing), **switches}
    return [str(processing.apply_chat_template(turn, **settings)) for turn in turns]


def answers(
    model: PreTrainedModel,
    processing: Processing,
    turns: Sequence[Turns],
    images: Sequence[Sequence[Image]],
    max_new_tokens: int,
) -> list[str]:
    """Greedy answers to conversations, in one batch, without special tokens.

    images: those of each conversation, in their order. A repetition penalty of the model's own
    stays, as in the published scores.
    """
    prompts: Sequence[Prompt] = prompt_texts(processing, turns)
    if not isinstance(processing, ProcessorMixin):
        # As in TRL: a text from a chat template is tokenized without special tokens.
        prompts = [processing(text, add_special_tokens=False)["input_ids"] for text in prompts]
    return generate(
        model,
        processing,
        prompts,
        max_new_tokens,
        len(turns),
        images=images,
        repetition_penalty=None,
    )


def load_processing(
    base: Base[PreTrainedConfig], limits: Grpo, is_for_tools: bool = False
) -> Processing:
    """The tokenizer of a language model, or the processor of a vision-language model.

    Padded on the left, with the chat template that the profile asks for. `limits` set the pixels
    that an image is scaled to. TRL 1.16 recognises a tool format by the exact text of a template:
    with tools the profile's switches are not written into it. Raises UserError.
    """
    vision = sees_images(base.config)
    arguments: dict[str, Any] = {"local_files_only": True, "padding_side": "left"}
    arguments["trust_remote_code"] = base.model.trust_remote_code
    loader = AutoProcessor if vision else AutoTokenizer
    try:
        processing: Processing = loader.from_pretrained(base.folder, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        what = "processor" if vision else "tokenizer"
        raise UserError(
            f"{base.model.name}: expected a {what} that this version of transformers can load, "
            f"found none: {str(error).strip().splitlines()[0]}"
        ) from error
    if isinstance(processing, ProcessorMixin):
        _limit_pixels(base.model.name, processing, limits)
    tokenizer = tokenizer_of(processing)
    _choose_template(base.model, processing, is_for_tools)
    if tokenizer.pad_token is None:
        # Completions are masked by position, so the end of an answer stays a target.
        tokenizer.pad_token = tokenizer.eos_token
    return processing


def _choose_template(wanted: Model, processing: Processing, is_for_tools: bool) -> None:
    if is_for_tools:
        wanted = wanted.model_copy(update={"chat_template_kwargs": {}})
    tokenizer = tokenizer_of(processing)
    own = getattr(processing, "chat_template", None) or tokenizer.chat_template
    template = chosen_template(wanted, own)
    if template is not own:
        processing.chat_template = tokenizer.chat_template = template


def _limit_pixels(name: str, processor: ProcessorMixin, limits: Grpo) -> None:
    """Set the pixel limits; Qwen's image processors store them under the names of edges."""
    wanted = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    given = {edge: pixels for edge, pixels in wanted.items() if pixels is not None}
    if not given:
        return
    images = processor.image_processor
    if not hasattr(images, "min_pixels") and "Qwen" not in type(images).__name__:
        raise UserError(
            f"grpo.max_pixels and min_pixels: expected a model whose images are scaled by their "
            f"pixels, found {type(images).__name__} of {name}; leave them out"
        )
    images.size = {**dict(images.size), **given}


def load_model(
    base: Base[PreTrainedConfig], config: GrpoConfig, report: Reporter
) -> PreTrainedModel:
    """The base as the config asks for it; see `engine.pretrained.load.load_model`."""
    return load.load_model(base, config, kind_of, report)


def learner(model: PreTrainedModel, config: GrpoConfig) -> Any:
    """The trained model: itself, or with a new adapter, the same for a resumed run."""
    trained: Any = model
    if config.adapter.method != "full":
        from workloads.engine.pretrained.adapter import add_adapter

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            trained = add_adapter(model, config.adapter)
    if config.model.freeze_vision:
        freeze_vision(trained, config.model.name)
    spare_frozen_tower(trained)
    return trained


def freeze_vision(model: Any, name: str) -> None:
    """Freeze the vision tower and an adapter on it; its projection into the text still learns.

    Raises UserError where the model has no vision tower.
    """
    frozen = _tower_weights(model)
    if not frozen:
        raise UserError(
            f"model.freeze_vision: expected a vision tower in {name}, found none; leave it out"
        )
    for weights in frozen:
        weights.requires_grad_(False)


def spare_frozen_tower(model: Any) -> None:
    """Keep the backward pass out of a vision tower in which nothing is trained.

    With checkpointing transformers asks every model inside for its input embeddings and makes
    their output need a gradient; to a tower these are the patches. It asks again whenever
    checkpointing is switched on, so the tower answers that it has none.
    """
    if any(weights.requires_grad for weights in _tower_weights(model)):
        return
    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and _TOWERS & set(path.split(".")):
            tower: Any = module
            tower.get_input_embeddings = _no_embeddings


def _no_embeddings() -> None:
    return None


def _tower_weights(model: Any) -> list[Tensor]:
    """The weights of the vision tower, those of an adapter on it too."""
    return [
        weights
        for path, weights in model.named_parameters()
        if _TOWERS & set(path.split(".")) and "merger" not in path
    ]


def kind_of(own: PreTrainedConfig) -> load.Kind:
    """The factory for models of this config."""
    return load.IMAGES if sees_images(own) else load.TEXT


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, its tokenizer or processor, and its adapter if any."""

    model: PreTrainedModel
    processing: Processing
    adapter: Path | None = None


def load_for_use(name: str, precision: str, limits: Grpo, report: Reporter) -> Loaded:
    """A model by hub id or folder for evaluation; see `engine.pretrained.load.load_for_use`."""
    ready = load.load_for_use(Model(name=name), precision, kind_of, report)
    return Loaded(ready.model, load_processing(ready.base, limits), ready.adapter)
