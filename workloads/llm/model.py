"""Language models and their tokenizers, from the hub or a folder, as a profile asks for them."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from workloads.config.sections import Model
from workloads.engine.pretrained import load
from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.files import Tell
from workloads.llm.config import LlmConfig
from workloads.llm.new_tokens import check_trained, grow, new_rows
from workloads.llm.tokenizer import choose_padding, load_tokenizer


def load_model(base: Base[PreTrainedConfig], config: LlmConfig, tell: Tell) -> PreTrainedModel:
    """The base as the config asks for it, with rows for new tokens.

    See `engine.pretrained.load.load_model`; raises UserError too where those rows would not learn.
    """
    model, rows = load.load_model(base, config, _kind, tell), new_rows(base)
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


def load_for_use(name: str, precision: str, tell: Tell, revision: str | None = None) -> Loaded:
    """A model by hub id or folder for evaluation; see `engine.pretrained.load.load_for_use`."""
    ready = load.load_for_use(Model(name=name, revision=revision), precision, _kind, tell)
    base = ready.base
    if ready.adapter and (ready.adapter / "tokenizer_config.json").is_file():
        # The adapter's own, for the model as it is with the rows that the adapter brought.
        base = replace(base, folder=ready.adapter, config=ready.model.config)
    return Loaded(ready.model, load_tokenizer(base, tell), ready.base, ready.adapter)


__all__ = ["Loaded", "choose_padding", "load_for_use", "load_model", "load_tokenizer"]
