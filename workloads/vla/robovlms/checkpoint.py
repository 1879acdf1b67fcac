"""Policies from RoboVLMs' own checkpoints: a file of weights and the training's JSON config."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import Kosmos2Config

from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.robovlms.config import inherited
from workloads.vla.robovlms.heads import FcHead, GptHead, Head, HeadSize, LstmHead
from workloads.vla.robovlms.modeling import KosmosPolicy
from workloads.vla.robovlms.translating import translate

_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_HEADS: Mapping[str, type[Head]] = {"lstm": LstmHead, "fc": FcHead, "gpt": GptHead}
_OF_MODEL = ("model", "act_head", "act_encoder", "use_vision_resampler")
_PREFIX = "model."
# Tied to the embeddings; the head a second time; a GPT's causal mask, which is no weight.
_TIED, _REPEATED = "backbone.text_model.lm_head.weight", "lm_head."
_MASKS = (".attn.bias", ".attn.masked_bias")


def load_pretrained(
    path: str | Path, dtype: torch.dtype = torch.float32, attn: str = "sdpa"
) -> KosmosPolicy:
    """A policy in evaluation mode from a folder with one file of weights and its JSON config.

    The backbone's config is the one that `model_config` names, from the working directory or the
    folder. attn: sdpa or eager. Nothing of the file is run. Raises UserError where files, fields or
    weights are missing, unknown, or of another shape.
    """
    folder = Path(path)
    weights = _only(folder, _WEIGHTS, "file of weights")
    config = _only(folder, (".json",), "JSON config")
    found = inherited(config)
    settings, rows = translate(found)
    for row in rows:
        if row.outcome == "refused" and row.field.partition(".")[0] in _OF_MODEL:
            raise UserError(f"{config}: {row.field} = {row.shown} cannot be loaded: {row.text}")
    window = settings.get("data", {}).get("window", HeadSize.window)
    backbone = _backbone(config, found.config.get("model_config"))
    head = _head(config, settings.get("action_head", {}), backbone.text_config.embed_dim, window)
    history = settings["action_head"]["history"]
    policy = KosmosPolicy.from_config(backbone, head, history, attn)
    load_weights(policy, weights)
    return policy.to(dtype).eval()


def load_weights(policy: KosmosPolicy, file: Path) -> None:
    """Put a checkpoint's weights into a policy; UserError names what is missing or too much."""
    stored = _renamed(_read(file))
    own = policy.state_dict()
    stored.setdefault(
        _TIED, stored.get("backbone.text_model.model.embed_tokens.weight", own[_TIED])
    )
    for what, names in (
        ("no", own.keys() - stored.keys()),
        ("unknown", stored.keys() - own.keys()),
    ):
        if names:
            raise UserError(
                f"{file}: expected the weights of the config's model, found {what} "
                f"{sorted(names)[0]} ({len(names)} such); take the config of the same training"
            )
    for name, value in own.items():
        if stored[name].shape != value.shape:
            raise UserError(
                f"{file}: expected {name} of shape {list(value.shape)}, found "
                f"{list(stored[name].shape)}; take the config of the same training"
            )
    policy.load_state_dict(stored)
    policy.backbone.tie_weights()


def _only(folder: Path, endings: tuple[str, ...], what: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"expected a folder, found none at {folder}; check the path")
    found = sorted(file for file in folder.iterdir() if file.suffix in endings)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: expected one {what}, found {names}; leave one there")
    return found[0]


def _backbone(config: Path, named: Any) -> Kosmos2Config:
    if not isinstance(named, str):
        raise UserError(f"{config}: expected a file's name as model_config, found {named!r}")
    for file in (Path(named), config.parent / named):
        if file.is_file():
            return Kosmos2Config.from_dict(read_json(file))
    raise UserError(
        f"{config}: expected the backbone's config {named} in {Path.cwd()} or {config.parent}, "
        "found none; copy it there"
    )


def _head(config: Path, settings: Mapping[str, Any], features: int, window: int) -> Head:
    kind = str(settings.get("kind"))
    if kind not in _HEADS or settings.get("reads") != "action_token":
        raise UserError(
            f"{config}: expected an LSTM, FC or GPT decoder on an action token, "
            f"found {dict(settings)}; other heads are not offered yet"
        )
    given = {
        name: settings[name]
        for name in ("hidden", "size", "chunk", "latent", "layers", "pool")
        if name in settings
    }
    return _HEADS[kind](HeadSize(features=features, window=window, **given))


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: expected a file of weights alone, found one that cannot be read as such "
            f"({cause}); copy it again"
        ) from None
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file}: expected weights by name, found none; check the file")
    return content


def _renamed(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names below the policy: `module.` and `model.` go, and what is there a second time."""
    names = {name: name.removeprefix("module.").removeprefix(_PREFIX) for name in stored}
    return {
        own: stored[name]
        for name, own in names.items()
        if not own.startswith(_REPEATED) and not own.endswith(_MASKS)
    }
