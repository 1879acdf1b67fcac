"""Building OpenVLA models: from a checkpoint folder, or with random weights.

Safetensors only, one file or shards with an index. Weights are read one tensor at a time into a
model without storage, so that loading needs no second copy of them.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.initialization import no_init_weights
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.openvla.config import OftSpec, OpenVLASpec, parse
from workloads.vla.openvla.layout import (
    HEADS,
    INDEX,
    OFT_CONFIG,
    OFT_WEIGHTS,
    WEIGHTS,
    check_names,
)
from workloads.vla.openvla.modeling import ATTENTION, OpenVLA
from workloads.vla.openvla.oft import OpenVLAOft
from workloads.vla.openvla.quantise import Quantisation, quantised, replace_linears

STATISTICS = "dataset_statistics.json"


def load_pretrained(
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    device: str | torch.device = "cpu",
    oft: OftSpec | None = None,
    quantisation: Quantisation | None = None,
) -> OpenVLA:
    """Load a checkpoint folder into evaluation mode.

    A folder with `oft_config.json` gives an OpenVLAOft; `oft` adds a fresh OFT head to one without.
    `quantisation` turns the base's linear layers into 4- or 8-bit ones as they are read. Raises
    UserError for missing or unexpected parameters, naming them, and for wrong shapes.
    """
    folder = Path(path)
    spec = parse(read_json(folder / "config.json"), str(folder / "config.json"))
    saved = saved_oft(folder)
    if saved is not None and oft is not None and saved != oft:
        raise UserError(f"expected the OFT head of {folder}, {saved}, found {oft} asked for")
    model = empty(spec, attn, saved or oft)
    files = [*weight_files(folder), *([folder / OFT_WEIGHTS] if saved else [])]
    names = set(model.state_dict())
    if quantisation is not None:
        replace_linears(model, quantisation)
    fresh = set(HEADS) if saved is None else set()
    expected = {name for name in names if name.partition(".")[0] not in fresh}
    _fill(model, files, dtype, torch.device(device), expected)
    _materialise_rest(model, dtype, torch.device(device))
    if (folder / STATISTICS).is_file():
        model.norm_stats = read_json(folder / STATISTICS)
    return model.eval()


def random_init(
    raw: Mapping[str, Any],
    seed: int,
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    oft: OftSpec | None = None,
    device: str | torch.device = "cpu",
) -> OpenVLA:
    """A model with random weights from the fields of config.json, the same for the same seed.

    They are drawn on `device`; random numbers differ between kinds of devices.
    """
    model = empty(parse(raw), attn, oft)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter, generator)
    model.to(dtype)
    _materialise_rest(model, dtype, torch.device(device))
    return model.eval()


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Draw weights: norms 1, biases 0, matrices that keep their input's scale, small tables."""
    if name.endswith("bias"):
        parameter.zero_()
    elif parameter.ndim == 1:
        parameter.fill_(1.0)
    else:
        table = parameter.ndim == 3 or name.endswith(("embed_tokens.weight", "lm_head.weight"))
        std = 0.02 if table else parameter[0].numel() ** -0.5
        nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder; raises UserError where one is missing."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        names = sorted(set(index.get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise UserError(
                f"{folder / INDEX}: expected its weight files, found missing: "
                f"{', '.join(missing) or 'all'}; complete the download"
            )
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    raise UserError(
        f"{folder}: expected {WEIGHTS} or {INDEX}, found neither; "
        "convert other weight formats to safetensors"
    )


def saved_oft(folder: Path) -> OftSpec | None:
    """The OFT head that a folder holds; None for one without.

    Raises UserError where its fields are missing or unknown.
    """
    file = folder / OFT_CONFIG
    if not file.is_file():
        return None
    try:
        return OftSpec(**read_json(file))
    except TypeError as error:
        raise UserError(f"{file}: expected the fields of an OFT head, found {error}") from error


def empty(spec: OpenVLASpec, attn: str, oft: OftSpec | None) -> OpenVLA:
    """A model without storage, on the meta device.

    Raises UserError for an unknown `attn`, one that cannot run here, and fields that make no model.
    """
    if attn not in ATTENTION:
        raise UserError(f"expected attn of {', '.join(ATTENTION)}, found {attn!r}")
    try:
        with torch.device("meta"), no_init_weights():
            return OpenVLA(spec, attn) if oft is None else OpenVLAOft(spec, attn, oft)
    except (StrictDataclassError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config.json: expected the shape of a model, found a mistake: {reason}; copy it again"
        ) from error
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"expected a way to run {attn}, found: {reason}; use attn sdpa") from error


def _fill(
    model: OpenVLA,
    files: list[Path],
    dtype: torch.dtype,
    device: torch.device,
    expected: set[str],
) -> None:
    """Assign every tensor of the files to its parameter."""
    found: set[str] = set()
    for file in files:
        for name, tensor in _tensors(file, device):
            found.add(name)
            if name in expected:
                # A copy, because a mapped file may be overwritten during the model's life.
                copied = tensor.to(dtype, copy=device.type == "cpu")
                _assign(model, name, copied, file, device)
    check_names(expected, found, str(files[0].parent))


def _tensors(file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt", device=str(device)) as reader:
            for name in reader.keys():  # noqa: SIM118 - the reader is no mapping
                yield name, reader.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"{file}: expected safetensors, found {error}; copy it again") from error


def _assign(model: OpenVLA, name: str, tensor: Tensor, file: Path, device: torch.device) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    old = owner.get_parameter(leaf)
    if old.shape != tensor.shape:
        raise UserError(
            f"{file}: expected {name} of shape {list(old.shape)}, found {list(tensor.shape)}; "
            "use the config.json that belongs to these weights"
        )
    parameter = quantised(owner, leaf, tensor, device)
    if parameter is None:
        parameter = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(owner, leaf, parameter)


def _materialise_rest(model: OpenVLA, dtype: torch.dtype, device: torch.device) -> None:
    """Allocate parameters that no file holds: the rotary table, and a new OFT head."""
    llama = model.language_model.model
    # Made after every cast of the model, so that it stays float32 with any dtype of weights.
    llama.rotary_emb = LlamaRotaryEmbedding(config=model.language_model.config).to(device)
    if isinstance(model, OpenVLAOft):
        model.reset_empty_heads(dtype, device)
