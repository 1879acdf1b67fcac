"""Vision-language-action models by family: the checkpoint's config.json says which one."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from workloads.errors import Retry, UserError
from workloads.vla.openvla import checkpoint as openvla
from workloads.vla.openvla.config import OftSpec, read_json
from workloads.vla.openvla.quantise import Quantisation

if TYPE_CHECKING:
    from workloads.vla.openvla.modeling import OpenVLA

FAMILIES: Mapping[str, ModuleType] = {"openvla": openvla}
# No code and no pickles: weights, JSON and the tokenizer are all that is ever read.
DOWNLOADED = ("*.safetensors", "*.json", "tokenizer.model")


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
    folder = locate(path, revision)
    load = _family(folder).load_pretrained
    model: OpenVLA = load(folder, dtype, attn, device, oft, quantisation)
    return model


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


def locate(path: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The checkpoint's folder; a hub name is downloaded, without any code, unless it is cached.

    Raises UserError for a name that is neither, and Retry where the hub cannot be reached.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    name = os.fspath(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"expected a checkpoint folder or a hub name, found {name!r}")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(DOWNLOADED)))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"expected a checkpoint folder or a hub name, found {name!r} at revision "
            f"{revision or 'main'} refused; correct model.name, or set HF_TOKEN where it is private"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError) as error:
        if is_offline_mode():
            raise UserError(
                f"expected {name} in the hub cache, found offline mode without it; download it once"
            ) from error
        raise Retry(f"expected to download {name}, found no answer of the hub") from error


def _family(folder: Path) -> ModuleType:
    file = folder / "config.json"
    kind = str(read_json(file).get("model_type"))
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{file}: expected model_type of {known}, found {kind!r}")
    return FAMILIES[kind]
