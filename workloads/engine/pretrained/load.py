"""transformers' models, for any task, in the types and with the attention that a profile asks for.

A workload says which factory a model's config belongs to; everything else is the same for all.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
from workloads.engine import distributed
from workloads.engine.pretrained.files import (
    ADAPTER_CONFIG,
    Tell,
    choose_attention,
    chosen,
    compute_dtype,
    has_flash_kernel,
    load_config,
    locate,
    quantisation,
    read_json,
    weights_dtype,
)
from workloads.errors import TataraError, UserError

P = TypeVar("P", bound=Profile)


@dataclass(frozen=True)
class Kind:
    """What makes models for a task, and the classes that it makes, by their configs."""

    factory: Any
    classes: Any


TEXT = Kind(AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING)
IMAGES = Kind(AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
KindOf = Callable[[PreTrainedConfig], Kind]


def settled(config: P, tell: Tell) -> P:
    """The config with the one model that all ranks will use, chosen by rank 0 from the list.

    Called by all ranks together, so that none takes a fallback alone. The weights are downloaded
    on the way. Raises on every rank what rank 0 found.
    """
    answer: Model | TataraError | None = None
    if distributed.rank() == 0:
        try:
            answer = chosen(config.model, tell)
        except TataraError as error:
            answer = error
    answer = distributed.from_main(answer)
    if isinstance(answer, TataraError):
        raise answer
    return config.model_copy(update={"model": answer})


def load_model(config: Profile, kind_of: KindOf, tell: Tell) -> PreTrainedModel:
    """The model that the config names, in the types and with the attention that it asks for.

    On the CPU, except for a quantised base, which is made on this rank's GPU where there is one.
    With `random_init` the weights follow from `train.seed`. Raises UserError or Retry.
    """
    model = chosen(config.model, tell) if config.model.fallbacks else config.model
    folder = locate(model, tell, weights=not model.random_init)
    own = load_config(model, folder)
    kind, compute = kind_of(own), compute_dtype(config.train)
    held = weights_dtype(config.train, config.adapter)
    arguments = _arguments(model, own, kind, compute, held, tell)
    if model.random_init:
        return _random(model, config, own, kind, folder, arguments)
    arguments["quantization_config"] = quantisation(config.adapter, compute)
    return _pretrained(model, folder, own, kind, arguments, tell)


def _arguments(
    model: Model,
    own: PreTrainedConfig,
    kind: Kind,
    compute: torch.dtype,
    held: torch.dtype,
    tell: Tell,
) -> dict[str, Any]:
    """What transformers is to be asked for: types, attention, and whether code may be run."""
    attention = choose_attention(
        model.attention,
        kind.classes.get(type(own), None),
        compute,
        torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        has_flash_kernel,
    )
    tell(attention.line())
    return {
        "dtype": held,
        "attn_implementation": attention.name,
        "trust_remote_code": model.trust_remote_code,
    }


def _random(
    model: Model,
    config: Profile,
    own: PreTrainedConfig,
    kind: Kind,
    folder: Path,
    arguments: dict[str, Any],
) -> PreTrainedModel:
    if config.adapter.method == "qlora":
        raise UserError(
            "adapter.method=qlora: expected pretrained weights to quantise, found "
            "model.random_init=true; use adapter.method=lora"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        made: PreTrainedModel = kind.factory.from_config(own, **arguments)
    if (folder / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(folder)
    return _known_as(made, model.name)


def _pretrained(
    model: Model,
    folder: Path,
    own: PreTrainedConfig,
    kind: Kind,
    arguments: dict[str, Any],
    tell: Tell,
) -> PreTrainedModel:
    from safetensors import SafetensorError

    if arguments.get("quantization_config") is not None and torch.cuda.is_available():
        arguments["device_map"] = {"": torch.cuda.current_device()}
    fixed = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        made, found = kind.factory.from_pretrained(folder, config=own, **fixed, **arguments)
    except SafetensorError as error:
        raise UserError(
            f"{model.name}: a weights file in {folder} is damaged ({error}); delete it and "
            "download it again"
        ) from error
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{model.name}: its weights cannot be loaded: {str(error).strip().splitlines()[0]}"
        ) from error
    _check_loaded(model.name, found, tell)
    return _known_as(made, model.name)


def _check_loaded(name: str, found: dict[str, Any], tell: Tell) -> None:
    """Weights that are missing would silently stay random."""
    missing = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if missing:
        raise UserError(
            f"{name}: expected weights for every part of the model, found none or others for "
            f"{len(missing)}, the first {missing[0]}; is this the config of these weights?"
        )
    if found["unexpected_keys"]:
        extra = sorted(found["unexpected_keys"])
        tell(f"model {name}: {len(extra)} weights in its files are not used, such as {extra[0]}")


def _known_as(made: PreTrainedModel, name: str) -> PreTrainedModel:
    """Keep the name that people know it by, which adapters and model cards repeat."""
    made.name_or_path = name
    made.config.name_or_path = name
    if made.generation_config is not None:
        made.generation_config = valid_generation(made.generation_config)
    return made


def valid_generation(generation: GenerationConfig) -> GenerationConfig:
    """Published files often set a temperature without sampling.

    transformers reads them and then refuses to write them, and every checkpoint with them.
    """
    try:
        generation.validate(strict=True)
    except ValueError:
        generation = copy.deepcopy(generation)
        generation.do_sample = True
    return generation


@dataclass(frozen=True)
class Ready:
    """A model ready to generate; `source` names it, or the base that an adapter sits on.

    folder: what was asked for; it may be an adapter's.
    """

    model: PreTrainedModel
    source: Model
    folder: Path
    is_adapter: bool


def load_for_use(wanted: Model, precision: str, kind_of: KindOf, tell: Tell) -> Ready:
    """A model by hub id or folder for evaluation: whole, or an adapter together with its base.

    precision: bf16, fp16 or fp32, of the weights and the computation. On the GPU where there is
    one, in evaluation mode.
    """
    folder = locate(wanted, tell, weights=False)
    is_adapter = (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()
    source = wanted
    if is_adapter:
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        source = Model(name=str(base))
    whole = locate(source, tell, weights=True)
    own = load_config(source, whole)
    kind, dtype = kind_of(own), compute_dtype(Train.model_validate({"precision": precision}))
    arguments = _arguments(source, own, kind, dtype, dtype, tell)
    model: Any = _pretrained(source, whole, own, kind, arguments, tell)
    if is_adapter:
        from workloads.engine.pretrained.adapter import load_adapter

        model = load_adapter(model, folder)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    return Ready(model.to(device).eval(), source, folder, is_adapter)
