"""Language models and their tokenizers, from the hub or a folder, as a profile asks for them."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
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
from workloads.llm.config import LlmConfig
from workloads.sections import Model, Train

# What published tokenizers call a padding token that they do not declare as one.
_PADDING = (
    *("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|PAD|>", "<PAD>"),
    *("<|padding|>", "<|endoftext|>", "<unk>", "[UNK]"),
)


def _silent(text: str) -> None:
    pass


def settled(config: LlmConfig, tell: Tell) -> LlmConfig:
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


def load_tokenizer(model: Model, tell: Tell = _silent) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token that never stands for the end of an answer.

    Raises UserError where there is none, or where it has more tokens than the model.
    """
    if model.fallbacks:
        model = chosen(model, _silent)
    folder = locate(model, tell, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=model.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{model.name}: expected a tokenizer that this version of transformers can load, "
            f"found none: {str(error).strip().splitlines()[0]}"
        ) from error
    _check_vocabulary(model.name, tokenizer, folder)
    note = choose_padding(tokenizer)
    if note:
        tell(note)
    return tokenizer


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        return
    size = read_json(folder / "config.json").get("vocab_size")
    if isinstance(size, int) and len(tokenizer) > size:
        raise UserError(
            f"{name}: expected a tokenizer of at most {size} tokens, which the model has, found "
            f"{len(tokenizer)}; use the tokenizer that belongs to the model"
        )


def choose_padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the tokenizer a padding token other than its end token; say what was done, if anything.

    Where padding and end are one token, a trainer that masks padding by id also masks the end of
    every answer, and the model never learns to stop.
    """
    pad, end = tokenizer.pad_token, tokenizer.eos_token
    if pad is not None and pad != end:
        return ""
    known = tokenizer.get_vocab()
    found = next((token for token in _PADDING if token in known and token != end), None)
    if found is not None:
        tokenizer.pad_token = found
        return f"tokenizer: padding with {found}"
    if end is None:
        raise UserError(
            "tokenizer: expected a padding or an end token, found neither; declare one in "
            "tokenizer_config.json"
        )
    tokenizer.pad_token = end
    return (
        f"tokenizer: no token of its own for padding, so {end} pads; it is masked by position, "
        "not by id, and the end of an answer stays a label"
    )


def load_model(config: LlmConfig, tell: Tell) -> PreTrainedModel:
    """The model that the config names, in the types and with the attention that it asks for.

    On the CPU, except for a quantised base, which is made on this rank's GPU where there is one.
    With `random_init` the weights follow from `train.seed`. Raises UserError or Retry.
    """
    model = chosen(config.model, tell) if config.model.fallbacks else config.model
    folder = locate(model, tell, weights=not model.random_init)
    own = load_config(model, folder)
    compute = compute_dtype(config.train)
    arguments = _arguments(model, own, compute, weights_dtype(config.train, config.adapter), tell)
    if model.random_init:
        return _random(model, config, own, folder, arguments)
    arguments["quantization_config"] = quantisation(config.adapter, compute)
    return _pretrained(model, folder, own, arguments, tell)


def _arguments(
    model: Model, own: PreTrainedConfig, compute: torch.dtype, weights: torch.dtype, tell: Tell
) -> dict[str, Any]:
    """What transformers is to be asked for: types, attention, and whether code may be run."""
    gpu = torch.cuda.is_available()
    attention = choose_attention(
        model.attention,
        MODEL_FOR_CAUSAL_LM_MAPPING.get(type(own), None),
        compute,
        torch.cuda.get_device_capability() if gpu else None,
        has_flash_kernel,
    )
    tell(attention.line())
    return {
        "dtype": weights,
        "attn_implementation": attention.name,
        "trust_remote_code": model.trust_remote_code,
    }


def _random(
    model: Model, config: LlmConfig, own: PreTrainedConfig, folder: Path, arguments: dict[str, Any]
) -> PreTrainedModel:
    if config.adapter.method == "qlora":
        raise UserError(
            "adapter.method=qlora: expected pretrained weights to quantise, found "
            "model.random_init=true; use adapter.method=lora"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(own, **arguments)
    if (folder / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(folder)
    return _known_as(made, model.name)


def _pretrained(
    model: Model, folder: Path, own: PreTrainedConfig, arguments: dict[str, Any], tell: Tell
) -> PreTrainedModel:
    from safetensors import SafetensorError

    if arguments.get("quantization_config") is not None and torch.cuda.is_available():
        arguments["device_map"] = {"": torch.cuda.current_device()}
    try:
        made, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=own,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **arguments,
        )
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
class Loaded:
    """A model ready to generate, its tokenizer, and the base that an adapter sits on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: str | None = None


def load_for_use(name: str, precision: str, tell: Tell, revision: str | None = None) -> Loaded:
    """A model by hub id or folder for evaluation: whole, or an adapter together with its base.

    precision: bf16, fp16 or fp32, of the weights and the computation. On the GPU where there is
    one, in evaluation mode.
    """
    wanted = Model(name=name, revision=revision)
    folder = locate(wanted, tell, weights=False)
    dtype = compute_dtype(Train.model_validate({"precision": precision}))
    base = None
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        base = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
    source = Model(name=base) if base else wanted
    model = _whole(source, dtype, tell)
    tokenizer_from = wanted if (folder / "tokenizer_config.json").is_file() else source
    tokenizer = load_tokenizer(tokenizer_from, tell)
    if base:
        from workloads.engine.adapter import load_adapter

        model = load_adapter(model, folder)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    return Loaded(model.to(device).eval(), tokenizer, base)


def _whole(model: Model, dtype: torch.dtype, tell: Tell) -> PreTrainedModel:
    folder = locate(model, tell, weights=True)
    own = load_config(model, folder)
    return _pretrained(model, folder, own, _arguments(model, own, dtype, dtype, tell), tell)


__all__ = [
    "Loaded",
    "choose_padding",
    "load_for_use",
    "load_model",
    "load_tokenizer",
    "settled",
    "valid_generation",
]
