"""Language and vision-language models with their tokenizers or processors, as a profile asks.

Which of the two a model is follows from its own config, never from its name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from workloads.engine import distributed
from workloads.engine.pretrained import (
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
from workloads.grpo.config import Grpo, GrpoConfig
from workloads.sections import Model, Train

Processing: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin


def settled(config: GrpoConfig, tell: Tell) -> GrpoConfig:
    """The config with the one model that all ranks will use, chosen by rank 0 from the list.

    Called by all ranks together; the weights are downloaded on the way. Raises on every rank what
    rank 0 found.
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


def sees_images(own: PreTrainedConfig) -> bool:
    """Whether a model of this config takes images beside text."""
    known = type(own) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return known and "vision_config" in type(own).sub_configs


def own_config(model: Model, tell: Tell) -> PreTrainedConfig:
    """The config in the model's folder, without its weights."""
    return load_config(model, locate(model, tell, weights=False))


def tokenizer_of(processing: Processing) -> PreTrainedTokenizerBase:
    """The tokenizer itself, or the one inside a processor."""
    return processing.tokenizer if isinstance(processing, ProcessorMixin) else processing


def load_processing(model: Model, limits: Grpo, tell: Tell) -> Processing:
    """The tokenizer of a language model, or the processor of a vision-language model.

    Padded on the left. `limits` set the pixels that an image is scaled to. Raises UserError.
    """
    folder = locate(model, tell, weights=False)
    vision = sees_images(load_config(model, folder))
    arguments: dict[str, Any] = {"local_files_only": True, "padding_side": "left"}
    arguments["trust_remote_code"] = model.trust_remote_code
    loader = AutoProcessor if vision else AutoTokenizer
    try:
        processing: Processing = loader.from_pretrained(folder, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        what = "processor" if vision else "tokenizer"
        raise UserError(
            f"{model.name}: expected a {what} that this version of transformers can load, "
            f"found none: {str(error).strip().splitlines()[0]}"
        ) from error
    if isinstance(processing, ProcessorMixin):
        _limit_pixels(model.name, processing, limits)
    tokenizer = tokenizer_of(processing)
    if tokenizer.pad_token is None:
        # Completions are masked by position, so the end of an answer stays a target.
        tokenizer.pad_token = tokenizer.eos_token
    return processing


def _limit_pixels(name: str, processor: ProcessorMixin, limits: Grpo) -> None:
    """Qwen's image processors keep the two bounds under the names of edges."""
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


def load_model(config: GrpoConfig, tell: Tell) -> PreTrainedModel:
    """The model that the config names, in the types and with the attention that it asks for.

    On the CPU, except for a quantised base, which is made on this rank's GPU where there is one.
    With `random_init` the weights follow from `train.seed`. Raises UserError or Retry.
    """
    model = config.model
    folder = locate(model, tell, weights=not model.random_init)
    own = load_config(model, folder)
    compute = compute_dtype(config.train)
    arguments = _arguments(model, own, compute, weights_dtype(config.train, config.adapter), tell)
    if model.random_init:
        return _random(config, own, folder, arguments)
    arguments["quantization_config"] = quantisation(config.adapter, compute)
    return _pretrained(model, folder, own, arguments, tell)


def learner(model: PreTrainedModel, config: GrpoConfig) -> Any:
    """What is trained: the model itself, or a new adapter on it whose weights follow from the seed.

    The same start makes the same reference again when a run is resumed.
    """
    if config.adapter.method == "full":
        return model
    from workloads.engine.adapter import add_adapter

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return add_adapter(model, config.adapter)


def auto_class(own: PreTrainedConfig) -> Any:
    """The factory that makes models of this config."""
    return AutoModelForImageTextToText if sees_images(own) else AutoModelForCausalLM


def _arguments(
    model: Model, own: PreTrainedConfig, compute: torch.dtype, weights: torch.dtype, tell: Tell
) -> dict[str, Any]:
    mapping = (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if sees_images(own) else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    attention = choose_attention(
        model.attention,
        mapping.get(type(own), None),
        compute,
        torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        has_flash_kernel,
    )
    tell(attention.line())
    return {
        "dtype": weights,
        "attn_implementation": attention.name,
        "trust_remote_code": model.trust_remote_code,
    }


def _random(
    config: GrpoConfig, own: PreTrainedConfig, folder: Path, arguments: dict[str, Any]
) -> PreTrainedModel:
    if config.adapter.method == "qlora":
        raise UserError(
            "adapter.method=qlora: expected pretrained weights to quantise, found "
            "model.random_init=true; use adapter.method=lora"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        made: PreTrainedModel = auto_class(own).from_config(own, **arguments)
    if (folder / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(folder)
    return _known_as(made, config.model.name)


def _pretrained(
    model: Model, folder: Path, own: PreTrainedConfig, arguments: dict[str, Any], tell: Tell
) -> PreTrainedModel:
    from safetensors import SafetensorError

    if arguments.get("quantization_config") is not None and torch.cuda.is_available():
        arguments["device_map"] = {"": torch.cuda.current_device()}
    fixed = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        made, found = auto_class(own).from_pretrained(folder, config=own, **fixed, **arguments)
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
    missing = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if missing:
        # They would silently stay random.
        raise UserError(
            f"{model.name}: expected weights for every part of the model, found none or others "
            f"for {len(missing)}, the first {missing[0]}; is this the config of these weights?"
        )
    return _known_as(made, model.name)


def _known_as(made: PreTrainedModel, name: str) -> PreTrainedModel:
    """Keep the name that people know it by, which adapters and model cards repeat."""
    made.name_or_path = name
    made.config.name_or_path = name
    if made.generation_config is not None:
        made.generation_config = writable(made.generation_config)
    return made


def writable(generation: GenerationConfig) -> GenerationConfig:
    """Published files often set a temperature without sampling, and cannot be written then."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation = GenerationConfig.from_dict({**generation.to_dict(), "do_sample": True})
    return generation


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, its tokenizer or processor, and the base under an adapter."""

    model: PreTrainedModel
    processing: Processing
    base: str | None = None


def load_for_use(name: str, precision: str, limits: Grpo, tell: Tell) -> Loaded:
    """A model by hub id or folder for evaluation: whole, or an adapter together with its base.

    precision: bf16, fp16 or fp32. On the GPU where there is one, in evaluation mode.
    """
    wanted = Model(name=name)
    folder = locate(wanted, tell, weights=False)
    base = None
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        base = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
    source = Model(name=base) if base else wanted
    whole = locate(source, tell, weights=True)
    own = load_config(source, whole)
    dtype = compute_dtype(Train.model_validate({"precision": precision}))
    model = _pretrained(source, whole, own, _arguments(source, own, dtype, dtype, tell), tell)
    processing = load_processing(source, limits, tell)
    if base:
        from workloads.engine.adapter import load_adapter

        model = load_adapter(model, folder)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    return Loaded(model.to(device).eval(), processing, base)
