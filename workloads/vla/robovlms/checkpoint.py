"""Policies from RoboVLMs' own checkpoints: a file of weights and the training's JSON config."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.robovlms.backbones import backbone_of
from workloads.vla.robovlms.config import inherited
from workloads.vla.robovlms.loading import empty, fill, load_exported
from workloads.vla.robovlms.modeling import HEADS, PolicyModel
from workloads.vla.robovlms.spec import MODEL_TYPE, HeadSize, PolicySpec
from workloads.vla.robovlms.translating import translate

_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_OF_MODEL = ("model", "act_head", "act_encoder", "use_vision_resampler")
_PREFIX = "model."
# The head a second time; a GPT's causal mask, which is no weight.
_REPEATED = "lm_head."
_MASKS = (".attn.bias", ".attn.masked_bias")


def load_pretrained(
    path: str | Path, dtype: torch.dtype = torch.float32, attn: str = "sdpa"
) -> PolicyModel:
    """A policy in evaluation mode: what `tatara export` wrote, or RoboVLMs' own, a folder with one
    file of weights and its JSON config.

    The backbone's config is the one that `model_config` names, from the working directory or the
    folder. attn: sdpa or eager. Nothing of the file is run. Raises UserError where files, fields or
    weights are missing, unknown, or of another shape.
    """
    folder = Path(path)
    exported = folder / "config.json"
    if exported.is_file() and read_json(exported).get("model_type") == MODEL_TYPE:
        return load_exported(folder, dtype, attn)
    weights = _only(folder, _WEIGHTS, "file of weights")
    return from_checkpoint(_only(folder, (".json",), "JSON config"), weights, attn).to(dtype)


def from_checkpoint(config: Path, weights: Path, attn: str = "sdpa") -> PolicyModel:
    """The policy of a JSON config with a checkpoint's weights, in evaluation mode."""
    found = inherited(config)
    settings, rows = translate(found)
    for row in rows:
        if row.outcome == "refused" and row.field.partition(".")[0] in _OF_MODEL:
            raise UserError(f"{config}: {row.field} = {row.shown} cannot be loaded: {row.text}")
    backbone = _backbone(config, found.config.get("model_config"))
    policy = empty(_spec(config, settings, backbone), attn)
    fill(policy, _own(read_weights(weights), policy), str(weights))
    return policy.eval()


def _only(folder: Path, endings: tuple[str, ...], what: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"expected a folder, found none at {folder}; check the path")
    found = sorted(file for file in folder.iterdir() if file.suffix in endings)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: expected one {what}, found {names}; leave one there")
    return found[0]


def _backbone(config: Path, named: Any) -> dict[str, Any]:
    if not isinstance(named, str):
        raise UserError(f"{config}: expected a file's name as model_config, found {named!r}")
    for file in (Path(named), config.parent / named):
        if file.is_file():
            # RoboVLMs' own copies of a config leave out what they are of.
            return {"model_type": "kosmos-2", **read_json(file)}
    raise UserError(
        f"{config}: expected the backbone's config {named} in {Path.cwd()} or {config.parent}, "
        "found none; copy it there"
    )


def _spec(config: Path, settings: Mapping[str, Any], backbone: dict[str, Any]) -> PolicySpec:
    head, data = settings.get("action_head", {}), settings.get("data", {})
    if head.get("kind") not in HEADS:
        raise UserError(
            f"{config}: expected an LSTM, FC or GPT decoder, found {head.get('kind')!r}; other "
            "heads are not loaded from checkpoints"
        )
    adapter = backbone_of(str(backbone["model_type"]), str(config))
    given = {
        name: head[name]
        for name in ("hidden", "size", "chunk", "latent", "layers", "pool", "dropout")
        if name in head
    }
    bounds = data.get("normalise")
    return PolicySpec(
        backbone=backbone,
        kind=head["kind"],
        head=HeadSize(
            features=adapter.features(AutoConfig.for_model(**backbone)),
            window=data.get("window", HeadSize.window),
            **given,
        ),
        history=head["history"],
        reads=head["reads"],
        bounds=(bounds["low"], bounds["high"]) if bounds else None,
    )


def read_weights(file: Path) -> dict[str, Tensor]:
    """Weights by name from a file that holds nothing else; no code of it is run."""
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


def _own(stored: Mapping[str, Tensor], policy: PolicyModel) -> dict[str, Tensor]:
    """Names below the policy: `module.` and `model.` go, and what is there a second time."""
    names = {name: name.removeprefix("module.").removeprefix(_PREFIX) for name in stored}
    again = policy.all_tied_weights_keys
    return {
        own: stored[name].float() if stored[name].is_floating_point() else stored[name]
        for name, own in names.items()
        if not own.startswith(_REPEATED) and not own.endswith(_MASKS) and own not in again
    }
