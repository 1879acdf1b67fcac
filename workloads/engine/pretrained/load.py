"""Loads transformers' models with a profile's dtypes and attention.

A workload names the factory for a model's config; everything else is shared.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from workloads.config.sections import Model, Profile, Train
from workloads.engine.memory_errors import is_out_of_memory
from workloads.engine.pretrained.base import Base, find_base, load_config, locate_for_use
from workloads.engine.pretrained.files import (
    ADAPTER_CONFIG,
    Reporter,
    choose_attention,
    compute_dtype,
    has_flash_kernel,
    quantisation,
    weights_dtype,
)
from workloads.errors import TataraError, UserError
from workloads.json_files import read_json


@dataclass(frozen=True)
class Kind:
    """Factory of models for a task, and its classes by config."""

    factory: Any
    classes: Any


TEXT = Kind(AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)
IMAGES = Kind(AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
KindOf = Callable[[PreTrainedConfig], Kind]


def load_model(
    base: Base[Any], config: Profile, kind_of: KindOf, report: Reporter
) -> PreTrainedModel:
    """The base in the types and with the attention that the config asks for.

    On the CPU, except for a quantised base, which is made on this rank's GPU where there is one.
    With `random_init` the weights follow from `train.seed`. Raises UserError or Retry.
    """
    kind, compute = kind_of(base.config), compute_dtype(config.train)
    held = weights_dtype(config.train, config.adapter)
    arguments = _arguments(base, kind, compute, held, report)
    if base.model.random_init:
        return _random(base, config, kind, arguments, report)
    arguments["quantization_config"] = quantisation(config.adapter, compute)
    return _pretrained(base, kind, arguments, report)


def _arguments(
    base: Base[Any], kind: Kind, compute: torch.dtype, held: torch.dtype, report: Reporter
) -> dict[str, Any]:
    """Arguments for transformers: dtypes, attention, and whether code may be run."""
    attention = choose_attention(
        base.model.attention,
        kind.classes.get(type(base.config), None),
        compute,
        torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        has_flash_kernel,
    )
    report(attention.line())
    return {
        "dtype": held,
        "attn_implementation": attention.name,
        "trust_remote_code": base.model.trust_remote_code,
    }


def _random(
    base: Base[Any], config: Profile, kind: Kind, arguments: dict[str, Any], report: Reporter
) -> PreTrainedModel:
    if config.adapter.method == "qlora":
        raise UserError(
            "adapter.method=qlora: expected pretrained weights to quantise, found "
            "model.random_init=true; use adapter.method=lora"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        made: PreTrainedModel = kind.factory.from_config(base.config, **arguments)
    made.generation_config = generation_settings(base, report) or made.generation_config
    return _known_as(made, base, report)


def _pretrained(
    base: Base[Any], kind: Kind, arguments: dict[str, Any], report: Reporter
) -> PreTrainedModel:
    from safetensors import SafetensorError

    if arguments.get("quantization_config") is not None and torch.cuda.is_available():
        arguments["device_map"] = {"": torch.cuda.current_device()}
    name = base.model.name
    fixed = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        made, found = kind.factory.from_pretrained(
            base.folder, config=base.config, **fixed, **arguments
        )
    except SafetensorError as error:
        raise UserError(
            f"{name}: a weights file in {base.folder} is damaged ({error}); delete it and "
            "download it again"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{name}: its weights cannot be loaded: {str(error).strip().splitlines()[0]}"
        ) from error
    _check_loaded(name, found, report)
    if arguments.get("quantization_config") is not None and not torch.cuda.is_available():
        _keep_layout(made)
    return _known_as(made, base, report)


def _keep_layout(model: PreTrainedModel) -> None:
    """Keep 4-bit weights on the CPU as they were quantised.

    In evaluation mode bitsandbytes (0.50) repacks them in place on CPUs with AVX512-BF16: that
    fails on widths not divisible by 64, changes the shape of shards, and rounds differently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_loaded(name: str, found: dict[str, Any], report: Reporter) -> None:
    """Raise UserError for missing weights, which would silently stay random."""
    missing = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if missing:
        raise UserError(
            f"{name}: expected weights for every part of the model, found none or others for "
            f"{len(missing)}, the first {missing[0]}; is this the config of these weights?"
        )
    if found["unexpected_keys"]:
        extra = sorted(found["unexpected_keys"])
        report(f"model {name}: {len(extra)} weights in its files are not used, such as {extra[0]}")


def _known_as(made: PreTrainedModel, base: Base[Any], report: Reporter) -> PreTrainedModel:
    """Keep the model's public name, which adapters and model cards repeat."""
    made.name_or_path = base.model.name
    made.config.name_or_path = base.model.name
    if made.generation_config is not None:
        made.generation_config = valid_generation(made.generation_config, base.model.name, report)
    return made


def generation_settings(base: Base[Any], report: Reporter) -> GenerationConfig | None:
    """The base's generation_config.json, without what cannot be written again."""
    if not (base.folder / "generation_config.json").is_file():
        return None
    try:
        found = GenerationConfig.from_pretrained(base.folder)
    except ValueError as error:
        raise _unusable(base.model.name, error) from error
    return valid_generation(found, base.model.name, report)


def valid_generation(
    generation: GenerationConfig, name: str = "model", report: Reporter = lambda text: None
) -> GenerationConfig:
    """The same settings without flags that have no effect, which are reported; name: the model's.

    Published files set a temperature without sampling, or rules of beams without beams.
    transformers (5.17) generates from them, but refuses to write them, and every checkpoint with
    them. Raises UserError for settings that cannot be used at all.
    """
    generation = copy.deepcopy(generation)
    try:
        generation.validate(strict=True)
        return generation
    except ValueError as error:
        idle = re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE)
        if not idle:
            raise _unusable(name, error) from error
    plain = GenerationConfig()
    left_out = [f"{flag} {getattr(generation, flag)}" for flag in idle]
    for flag in idle:
        setattr(generation, flag, getattr(plain, flag))
    try:
        generation.validate(strict=True)
    except ValueError as error:
        raise _unusable(name, error) from error
    report(
        f"{name}: generation settings without effect are left out of what is saved: "
        f"{', '.join(left_out)}"
    )
    return generation


def _unusable(name: str, error: ValueError) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"{name}: expected generation settings that transformers can use, found: {reason[:300]}; "
        "correct its generation_config.json"
    )


@dataclass(frozen=True)
class Ready:
    """A model ready to generate.

    base: the source of its weights; adapter: the folder of its adapter, None for a whole model.
    """

    model: PreTrainedModel
    base: Base[Any]
    adapter: Path | None


def load_for_use(wanted: Model, precision: str, kind_of: KindOf, report: Reporter) -> Ready:
    """Load a model by hub id or folder for evaluation: a whole one, or an adapter with its base.

    precision: bf16, fp16 or fp32, of the weights and the computation. On the GPU where there is
    one, in evaluation mode.
    """
    folder, is_adapter = locate_for_use(wanted, report)
    if is_adapter:
        base = base_of_adapter(folder, report)
    else:
        base = Base(wanted, folder, load_config(wanted, folder))
    kind = kind_of(base.config)
    dtype = compute_dtype(Train.model_validate({"precision": precision}))
    arguments = _arguments(base, kind, dtype, dtype, report)
    model: Any = _pretrained(base, kind, arguments, report)
    if is_adapter:
        from workloads.engine.pretrained.adapter import load_adapter

        model = load_adapter(model, folder)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    return Ready(model.to(device).eval(), base, folder if is_adapter else None)


def base_of_adapter(folder: Path, report: Reporter) -> Base[Any]:
    """The base that an adapter names; errors of the base name the adapter."""
    named = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
    try:
        return find_base(Model(name=named), report)
    except TataraError as error:
        raise type(error)(
            f"{folder}: expected the base model of this adapter as {named!r} "
            f"(base_model_name_or_path in {ADAPTER_CONFIG}), which cannot be used: {error}"
        ) from error
