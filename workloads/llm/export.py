"""Exports a language model's run to a folder that transformers loads, by the engine's frame."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workloads.engine.export.export import SHARD_SIZE, keep_base, silent
from workloads.engine.export.exporter import Exporter, ExportJob, Merged, Whole, check_loaded
from workloads.engine.pretrained import weights
from workloads.engine.pretrained.adapter import merge_into
from workloads.engine.pretrained.base import Base, find_base
from workloads.engine.pretrained.chat import with_stops
from workloads.engine.pretrained.load import generation_settings
from workloads.errors import TataraError, UserError
from workloads.llm.config import PUT, LlmConfig
from workloads.llm.model import load_model, load_tokenizer
from workloads.run import Run


def keep_skeleton(
    base: Base[PreTrainedConfig],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
) -> None:
    """Keep config, tokenizer and the base's card in the run: export then needs nothing else."""
    folder = keep_base(base, run)
    model.config.save_pretrained(folder)
    with_stops(tokenizer, model.generation_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class LlmExporter(Exporter[LlmConfig]):
    """Writes weights by the model's own names, from any checkpoint, and the tokenizer."""

    def trained(self, job: ExportJob[LlmConfig]) -> Whole:
        return whole_model(weights.read_state(job.source, job.dtype), job.base)

    def merged(self, job: ExportJob[LlmConfig], adapter: Path) -> tuple[Whole, Merged]:
        model, quantised = self.unmerged(job), None
        if job.config.adapter.method == "qlora" and find_spec("bitsandbytes") is None:
            job.report("merge: bitsandbytes is not installed; not compared with the quantised base")
        elif job.config.adapter.method == "qlora":
            base = find_base(job.config.model, job.report)
            quantised = load_model(base, job.config, job.report)
        merged, report = merge_into(model, adapter, quantised=quantised)
        whole = whole_model(merged.state_dict(), job.base)
        return whole, Merged(report.line(), report.difference)

    def unmerged(self, job: ExportJob[LlmConfig]) -> PreTrainedModel:
        plain = job.config.adapter.model_copy(update={"method": "lora"})
        config = job.config.model_copy(update={"adapter": plain})
        return load_model(find_base(job.config.model, job.report), config, job.report)

    def accompany(self, job: ExportJob[LlmConfig], folder: Path) -> None:
        tokenizer = load_tokenizer(job.base, silent)
        tokenizer.save_pretrained(folder)
        with_stops(tokenizer, generation_settings(job.base, silent)).save_pretrained(folder)

    def facts(self, job: ExportJob[LlmConfig]) -> dict[str, Any]:
        """The form of prompts in training, for later use of the model."""
        return {"data": {name: getattr(job.config.data, name) for name in PUT}}

    def check(self, job: ExportJob[LlmConfig], folder: Path) -> None:
        shell = check_loaded(AutoModelForCausalLM, folder, job.base.model.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=job.base.model.trust_remote_code
        )
        size = shell.config.get_text_config().vocab_size
        if len(tokenizer) > size:
            raise TataraError(
                f"export: the tokenizer has {len(tokenizer)} tokens, the model {size}"
            )


def whole_model(state: Mapping[str, torch.Tensor], base: Base[PreTrainedConfig]) -> Whole:
    """A model of the base's config with weights from host memory.

    state: by the model's own names, in the type to write; every weight must be there in the
    model's shape, tied ones may be named once. Raises UserError where one is not.
    """
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    config = type(base.config).from_dict(base.config.to_dict())
    config.use_cache = True
    with torch.device("meta"):
        shell: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=base.model.trust_remote_code
        )
    _check_names(shell, state)
    # Written with the tokenizer's chat template, which tells where answers end.
    shell.generation_config = GenerationConfig()
    return Whole(
        state,
        lambda folder: shell.save_pretrained(
            folder, state_dict=dict(state), max_shard_size=SHARD_SIZE
        ),
    )


def _check_names(shell: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    wanted = {name: tuple(value.shape) for name, value in shell.state_dict().items()}
    tied = set(shell.all_tied_weights_keys)
    missing = sorted(name for name in wanted if name not in state and name not in tied)
    extra = sorted(set(state) - set(wanted))
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is not part of the model"
        raise UserError(f"export: expected the weights of a {type(shell).__name__}, but {what}")
    for name, value in state.items():
        if tuple(value.shape) != wanted[name]:
            raise UserError(
                f"export: expected {name} of shape {wanted[name]}, found {tuple(value.shape)}"
            )


EXPORTER = LlmExporter()
export = EXPORTER.export
