"""Policies from RoboVLMs' own checkpoints: a file of weights and the training's JSON config."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from workloads.engine.hub.upload import FACTS
from workloads.engine.pretrained.weights import size_of, whole_folder
from workloads.engine.torch_files import Say, read_torch_file, silent
from workloads.engine.zero import to_fp32
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.robovlms.backbones import backbone_of, usable_tokens
from workloads.vla.robovlms.config import inherited
from workloads.vla.robovlms.loading import carry, empty, fill, load_exported, tokenizer
from workloads.vla.robovlms.modeling import PolicyModel, write
from workloads.vla.robovlms.spec import MODEL_TYPE, HeadSize, PolicySpec
from workloads.vla.robovlms.translating import translate
from workloads.vla.statistics import write_statistics

_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_OF_MODEL = ("model", "act_head", "act_encoder", "use_vision_resampler")
# What DDP, Lightning, and Lightning before 2.1 for DeepSpeed's shards put before every name.
_OUTSIDE = ("module", "model", "_forward_module")
# What torch.compile, FSDP and activation checkpointing put into names.
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# A copy of the head; a GPT's causal mask, which is no weight.
_REPEATED = "lm_head."
_MASKS = (".attn.bias", ".attn.masked_bias")


def load_pretrained(
    path: str | Path, dtype: torch.dtype = torch.float32, attn: str = "auto"
) -> PolicyModel:
    """Load a policy in evaluation mode, from an exported folder or a checkpoint of RoboVLMs.

    A checkpoint of RoboVLMs is a folder with one file of weights and its JSON config. The
    backbone's config is the one that `model_config` names, from the working directory or the
    folder; discrete actions need its tokenizer beside it. attn: sdpa or eager; auto is what fits.
    No code of the files is run. Raises UserError where files, fields
    or weights are missing, unknown, or of another shape.
    """
    folder = Path(path)
    exported = folder / "config.json"
    if exported.is_file() and read_json(exported).get("model_type") == MODEL_TYPE:
        return load_exported(folder, dtype, attn)
    weights = _only(folder, _WEIGHTS, "file of weights")
    return from_checkpoint(_only(folder, (".json",), "JSON config"), weights, attn).to(dtype)


def from_checkpoint(
    config: Path, weights: Path, attn: str = "auto", base: Path | None = None, say: Say = silent
) -> PolicyModel:
    """The policy of a JSON config with a checkpoint's weights, in evaluation mode.

    base: the backbone's config.json, with its tokenizer beside it, by default the file that
    `model_config` names; say: is told how far the checksums of large files are. Raises UserError
    for a field that cannot be loaded.
    """
    found = inherited(config)
    settings, rows = translate(found)
    for row in rows:
        if row.outcome == "refused" and row.field.partition(".")[0] in _OF_MODEL:
            raise UserError(f"{config}: {row.field} = {row.shown} cannot be loaded: {row.text}")
    if base is None:
        base = _backbone(config, found.config.get("model_config"))
    # RoboVLMs' own copies of a config leave out what they are of.
    backbone = {"model_type": "kosmos-2", **read_json(base)}
    if backbone["model_type"] != "kosmos-2":
        raise UserError(
            f"{config}: expected a checkpoint on kosmos-2, found one on {backbone['model_type']}; "
            "how RoboVLMs lays out the frames of others has not been checked against its own "
            "answers, so that only trainings of `tatara train` are loaded"
        )
    if "kind" not in settings.get("action_head", {}):
        raise UserError(f"{config}: expected act_head.type to name a decoder, found none; add it")
    policy = empty(_spec(settings, backbone, base), attn)
    stored = to_fp32(weights, say) if weights.is_dir() else read_weights(weights, say)
    fill(policy, _own(stored, policy), str(weights))
    return policy.eval()


def write_policy(config: Path, weights: Path, base: Path, folder: Path, say: Say = silent) -> None:
    """Write a checkpoint as an exported policy, which `tatara serve` and `train` take.

    weights: the file, or the folder of DeepSpeed's shards; base: the folder with the backbone's
    config, tokenizer and image processor. Raises as `load_pretrained`, before anything is written,
    and where the config's actions are not normalised by bounds.
    """
    found = inherited(config)
    settings, _ = translate(found)
    if "normalise" not in settings.get("data", {}):
        mixture = settings.get("data", {}).get("mixture")
        there = f"the mixture {mixture}, whose datasets' q01 to q99 count" if mixture else "none"
        raise UserError(
            f"{config}: expected norm_action with norm_min and norm_max, found {there}; only such "
            "actions are turned back without the datasets' statistics, which no checkpoint holds"
        )
    if not (base / "config.json").is_file():
        raise UserError(f"{base}: expected the backbone's config.json, found none; complete it")
    policy = from_checkpoint(config, weights, base=base / "config.json", say=say)
    spec = policy.spec
    kinds = {"dtype": "float32", "family": MODEL_TYPE, "kind": "model"}
    cameras = ["static", "gripper"] if found.config.get("use_hand_rgb") else ["static"]
    facts = {**kinds, "step": None, "notes": [], "cameras": cameras, "crop_area": 1.0}
    state = policy.state_dict()
    with whole_folder(folder, int(1.05 * size_of(state))) as partial:
        write(partial, state, spec, policy.all_tied_weights_keys)
        carry(base, partial)
        write_statistics(partial, {"calvin": {"action": _bounds(spec)}})
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _bounds(spec: PolicySpec) -> dict[str, list[float]]:
    """Statistics equivalent to the bounds; a gripper is -1 closed and 1 open."""
    assert spec.bounds is not None
    arm = spec.head.size - spec.head.gripper
    low, high = ([bound] * arm for bound in spec.bounds)
    if spec.head.gripper:
        low, high = [*low, -1.0], [*high, 1.0]
    middle = [(one + other) / 2 for one, other in zip(low, high, strict=True)]
    return {"q01": low, "q99": high, "min": low, "max": high, "mean": middle}


def _only(folder: Path, endings: tuple[str, ...], what: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"expected a folder, found none at {folder}; check the path")
    found = sorted(file for file in folder.iterdir() if file.suffix in endings)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: expected one {what}, found {names}; leave one there")
    return found[0]


def _backbone(config: Path, named: Any) -> Path:
    if not isinstance(named, str):
        raise UserError(f"{config}: expected a file's name as model_config, found {named!r}")
    for file in (Path(named), config.parent / named):
        if file.is_file():
            return file
    raise UserError(
        f"{config}: expected the backbone's config {named} in {Path.cwd()} or {config.parent}, "
        "found none; copy it there"
    )


def _spec(settings: Mapping[str, Any], backbone: dict[str, Any], base: Path) -> PolicySpec:
    head, data = settings["action_head"], settings.get("data", {})
    adapter = backbone_of(str(backbone["model_type"]), str(base))
    sizes = {field.name for field in fields(HeadSize)}
    of_tokens = {name: head[name] for name in ("reads", "bins", "low", "high") if name in head}
    if head["kind"] == "discrete":
        of_tokens["usable"] = usable_tokens(tokenizer(base.parent))
    bounds = data.get("normalise")
    return PolicySpec(
        backbone=backbone,
        kind=head["kind"],
        head=HeadSize(
            features=adapter.features(AutoConfig.for_model(**backbone)),
            window=data.get("window", HeadSize.window),
            **{name: value for name, value in head.items() if name in sizes},
        ),
        history=head["history"],
        bounds=(bounds["low"], bounds["high"]) if bounds else None,
        **of_tokens,
    )


def read_weights(file: Path, say: Say = silent) -> dict[str, Tensor]:
    """Weights by name, of their own shapes, from a file that holds nothing else.

    No code of the file is run. say: as in `read_torch_file`. Raises UserError for a file with
    anything else.
    """
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{file}: expected safetensors, found {error}; copy it again"
            ) from error
    content = read_torch_file(file, say)
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file}: expected weights by name, found none; check the file")
    return content


def _own(stored: Mapping[str, Tensor], policy: PolicyModel) -> dict[str, Tensor]:
    """Weights by names below the policy: without those of wrappers, and without copies."""
    names = {name: _without_wrappers(name) for name in stored}
    again = policy.all_tied_weights_keys
    return {
        own: stored[name].float() if stored[name].is_floating_point() else stored[name]
        for name, own in names.items()
        if not own.startswith(_REPEATED) and not own.endswith(_MASKS) and own not in again
    }


def _without_wrappers(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _INSIDE]
    while parts[:-1] and parts[0] in _OUTSIDE:
        parts = parts[1:]
    return ".".join(parts)
