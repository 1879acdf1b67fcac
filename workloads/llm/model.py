"""Loads language models and their tokenizers, from the hub or a folder, by a profile."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workloads.config.sections import Model
from workloads.engine.pretrained import load
from workloads.engine.pretrained.base import Base, load_config, locate_for_use
from workloads.engine.pretrained.files import Reporter
from workloads.llm.config import LlmConfig
from workloads.llm.new_tokens import check_trained, grow, new_rows
from workloads.llm.tokenizer import choose_padding, load_tokenizer


def load_model(
    base: Base[PreTrainedConfig], config: LlmConfig, report: Reporter
) -> PreTrainedModel:
    """The base as the config asks for it, with rows for new tokens.

    See `engine.pretrained.load.load_model`; also raises UserError where those rows would not learn.
    """
    model, rows = load.load_model(base, config, _kind, report), new_rows(base)
    if rows:
        check_trained(model, config.adapter)
        grow(model, rows)
    return model


def _kind(own: PreTrainedConfig) -> load.Kind:
    return load.TEXT


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, its tokenizer, the base of its weights, and its adapter if any."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: Base[PreTrainedConfig]
    adapter: Path | None = None


def load_for_use(
    name: str, precision: str, report: Reporter, revision: str | None = None
) -> Loaded:
    """A model by hub id or folder for evaluation; see `engine.pretrained.load.load_for_use`."""
    ready = load.load_for_use(Model(name=name, revision=revision), precision, _kind, report)
    base = ready.base
    if ready.adapter and (ready.adapter / "tokenizer_config.json").is_file():
        # The adapter's own tokenizer, which has the adapter's new tokens.
        base = replace(base, folder=ready.adapter, config=ready.model.config)
    return Loaded(ready.model, load_tokenizer(base, report), ready.base, ready.adapter)


@dataclass(frozen=True)
class FoundModel:
    """Facts of a model before its weights are read.

    base: the source of its weights; folder: its own, or the adapter's. tokenizer and settings are
    the adapter's if it has some; a model of images has no tokenizer here.
    """

    base: Base[PreTrainedConfig]
    folder: Path
    is_adapter: bool
    tokenizer: PreTrainedTokenizerBase | None
    settings: GenerationConfig | None


def find_for_use(name: str, report: Reporter) -> FoundModel:
    """Find a model by hub id or folder with all files, for another program. Raises UserError."""
    wanted = Model(name=name)
    folder, is_adapter = locate_for_use(wanted, report)
    if is_adapter:
        base = load.base_of_adapter(folder, report)
    else:
        base = Base(wanted, folder, load_config(wanted, folder))
    if hasattr(base.config, "vision_config"):
        return FoundModel(base, folder, is_adapter, None, None)
    own = replace(base, folder=folder)
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    has_settings = (folder / "generation_config.json").is_file()
    tokenizer = load_tokenizer(own if has_tokenizer else base, report)
    settings = load.generation_settings(own if has_settings else base, report)
    return FoundModel(base, folder, is_adapter, tokenizer, settings)


__all__ = [
    "FoundModel",
    "Loaded",
    "choose_padding",
    "find_for_use",
    "load_for_use",
    "load_model",
    "load_tokenizer",
]
