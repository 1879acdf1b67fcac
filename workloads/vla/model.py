"""Vision-language-action models; the checkpoint's config.json names the family."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from workloads.config.sections import Model
from workloads.engine.pretrained.base import locate
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.openvla import checkpoint as openvla
from workloads.vla.openvla.config import OftSpec
from workloads.vla.openvla.quantise import Quantisation

if TYPE_CHECKING:
    from workloads.vla.openvla.modeling import OpenVLA

FAMILIES: Mapping[str, ModuleType] = {"openvla": openvla}


def load_pretrained(
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    device: str | torch.device = "cpu",
    oft: OftSpec | None = None,
    quantisation: Quantisation | None = None,
    revision: str | None = None,
) -> "OpenVLA":
    """Load a checkpoint, a folder or a name on the Hugging Face hub, into evaluation mode.

    attn: "eager", "sdpa" or "flash_attention_2". `oft` adds a fresh OFT head to a checkpoint that
    has none; `quantisation` gives the base 4- or 8-bit weights. Raises UserError where the folder
    is no checkpoint of a known family.
    """
    named = Model(name=os.fspath(path), revision=revision)
    # Missing files of a local folder are reported by its family's reader.
    folder = locate(named, _silent, weights=not Path(path).is_dir())
    load = _family(folder).load_pretrained
    model: OpenVLA = load(folder, dtype, attn, device, oft, quantisation)
    return model


def _silent(text: str) -> None:
    """Print nothing: programs call this module."""


def random_init(
    path: str | os.PathLike[str],
    seed: int,
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    oft: OftSpec | None = None,
    device: str | torch.device = "cpu",
) -> "OpenVLA":
    """A model with random weights, the same for the same seed, from a folder's config.json."""
    folder = Path(path)
    fields = read_json(folder / "config.json")
    model: OpenVLA = _family(folder).random_init(fields, seed, dtype, attn, oft, device)
    return model


def save_pretrained(
    model: "OpenVLA", path: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> None:
    """Write a model in its family's published layout, so that the original tools load it."""
    model.save_pretrained(path, dtype=dtype)


def _family(folder: Path) -> ModuleType:
    file = folder / "config.json"
    kind = str(read_json(file).get("model_type"))
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{file}: expected model_type of {known}, found {kind!r}")
    return FAMILIES[kind]
