"""The files of a pretrained model's folder, and which dtype, quantisation and attention to use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.config.sections import Adapter, Profile, Train
from workloads.errors import UserError
from workloads.findings import Finding
from workloads.json_files import read_json

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

Reporter = Callable[[str], None]
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FILES = (".jsonl", ".json", ".parquet", ".csv")
# Config fields for the longest sequence of a model.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, which needs its base."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def is_path(name: str) -> bool:
    """Whether a name can only be a path: the hub has owner/name and, for old models, name."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def is_local(name: str) -> bool:
    """Whether a name means a local path, existing or not, and not a repository."""
    path = Path(name).expanduser()
    return is_path(name) or path.suffix in _FILES or path.exists()


def weight_files(folder: Path) -> list[str]:
    """Names of a model's safetensors files, as its index lists them."""
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return [WEIGHTS]
    return sorted(set(read_json(index).get("weight_map", {}).values()))


def check_weights(name: str, folder: Path) -> None:
    """Raise UserError where a folder lacks a model's safetensors files."""
    missing = [file for file in weight_files(folder) if not (folder / file).is_file()]
    if not missing:
        return
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{name}: expected a whole model, found an adapter; give its base as model.name and "
            "this folder as adapter.resume_from"
        )
    if (folder / WEIGHTS_INDEX).is_file():
        raise UserError(
            f"{name}: {WEIGHTS_INDEX} names {missing[0]}, which is missing; copy it there too"
        )
    if any(path for pattern in _PICKLES for path in folder.glob(pattern)):
        raise UserError(
            f"{name}: expected safetensors weights, found pickled ones, which may run code when "
            "loaded; convert them to safetensors first"
        )
    raise UserError(
        f"{name}: expected {WEIGHTS}, found no safetensors weights; choose another folder or "
        "revision, or set model.random_init=true to start from random weights"
    )


def local_model(config: Profile) -> list[Finding]:
    """Check before any start that a model named by its folder can be read. Raises UserError."""
    model, folder = config.model, Path(config.model.name).expanduser()
    if not folder.is_dir():
        return []
    try:
        if is_adapter(folder) or not model.random_init:
            check_weights(model.name, folder)
        if not (folder / "config.json").is_file():
            raise UserError(f"{model.name}: expected a model's config.json, found none")
    except UserError as error:
        return [Finding("model.name", "error", str(error))]
    return []


def lasting_name(name: str) -> str:
    """A model's name that is valid in every folder: a local one's full path, else its hub id."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def positions(own: Mapping[str, Any]) -> int | None:
    """The longest sequence in tokens that a model takes, by its config; None if not given.

    own: config.json as an object; models of text and images keep it in the part of the text.
    """
    for part in (own.get("text_config"), own.get("llm_config"), own):
        found = [part[name] for name in _POSITIONS if name in part] if part else []
        if found and isinstance(found[0], int) and found[0] > 0:
            return found[0]
    return None


def compute_dtype(train: Train) -> "torch.dtype":
    """The type that products are computed in."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[train.precision]


def weights_dtype(train: Train, adapter: Adapter) -> "torch.dtype":
    """The type that the base's weights are held in.

    Trained weights follow `master_weights`; with fp32 masters the trainer's autocast, or FSDP's
    mixed precision, computes in the other type. A frozen base needs no masters. Raises UserError
    for fp16 weights that are trained without masters.
    """
    import torch

    if adapter.method != "full":
        return compute_dtype(train)
    if train.master_weights == "fp32":
        return torch.float32
    if train.precision == "fp16":
        raise UserError(
            "train.master_weights=compute: expected bf16 or fp32, found precision fp16, whose "
            "gradients cannot be unscaled in place; set train.master_weights=fp32"
        )
    return compute_dtype(train)


def quantisation(adapter: Adapter, dtype: "torch.dtype") -> "BitsAndBytesConfig | None":
    """How the base is quantised under qlora; None for the other methods.

    dtype: of the products. Raises UserError where bitsandbytes is not installed.
    """
    if adapter.method != "qlora":
        return None
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "adapter.method=qlora: expected the package bitsandbytes, found none; pip install "
            "bitsandbytes, or set adapter.method=lora"
        )
    from transformers import BitsAndBytesConfig

    if adapter.quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=adapter.double_quantisation,
        bnb_4bit_compute_dtype=dtype,
        # Stored in the compute type, quantised weights can be sharded like all others.
        bnb_4bit_quant_storage=dtype,
    )


@dataclass(frozen=True)
class AttentionChoice:
    """The attention implementation, and why not a faster one."""

    name: str
    reason: str = ""

    def line(self) -> str:
        return f"attention: {self.name}" + (f" ({self.reason})" if self.reason else "")


def choose_attention(
    wanted: str,
    model_class: type | None,
    dtype: "torch.dtype",
    capability: tuple[int, int] | None,
    has_kernel: Callable[[], bool],
) -> AttentionChoice:
    """The first of flash, sdpa and eager that works; raises UserError if the profile's does not.

    model_class: None where it is the repository's own code. capability: the GPU's, None without
    one. has_kernel: whether a flash-attention kernel can be loaded; asked last, as it may download.
    """
    no_sdpa = model_class is not None and not model_class._supports_sdpa  # type: ignore[attr-defined]
    if wanted == "eager" or (wanted == "sdpa" and not no_sdpa):
        return AttentionChoice(wanted)
    if wanted == "sdpa":
        raise UserError(f"model.attention=sdpa: {_named(model_class)} has none; set it to eager")
    reason = _why_no_flash(model_class, dtype, capability, has_kernel)
    if reason is None:
        return AttentionChoice("flash_attention_2")
    if wanted == "flash_attention_2":
        raise UserError(f"model.attention=flash_attention_2: {reason}; set model.attention=auto")
    if no_sdpa:
        return AttentionChoice("eager", f"no flash: {reason}; no sdpa in {_named(model_class)}")
    return AttentionChoice("sdpa", f"no flash: {reason}")


def _named(model_class: type | None) -> str:
    return model_class.__name__ if model_class else "this model"


def _why_no_flash(
    model_class: type | None,
    dtype: "torch.dtype",
    capability: tuple[int, int] | None,
    has_kernel: Callable[[], bool],
) -> str | None:
    import torch

    if capability is None:
        return "it needs a CUDA GPU, and none is here"
    if capability < (8, 0):
        return f"it needs compute capability 8.0, and this GPU has {capability[0]}.{capability[1]}"
    if dtype == torch.float32:
        return "it computes in bf16 or fp16, and train.precision is fp32"
    if model_class is not None and not model_class._supports_flash_attn:  # type: ignore[attr-defined]
        return f"{_named(model_class)} does not support it"
    if not has_kernel():
        return (
            "neither the package flash-attn nor a prebuilt kernel (package kernels) can be loaded"
        )
    return None


def has_flash_kernel() -> bool:
    """Whether flash attention can be loaded: its own package first, else a prebuilt kernel.

    transformers (5.17) takes a package that is installed for one that works, and fails where it was
    compiled for another torch.
    """
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available(kernels_fallback_ok=True):
        return False
    if find_spec("flash_attn") is not None:
        try:
            import flash_attn  # noqa: F401
        except (ImportError, OSError):
            return False
    return True
