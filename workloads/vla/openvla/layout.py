"""Writing OpenVLA checkpoints in the published layout: key names, shapes, shards, config.json."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from workloads.errors import UserError
from workloads.vla.openvla.config import OftSpec, OpenVLASpec, with_published_code
from workloads.vla.processing import EOS_TOKEN_ID

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OFT_CONFIG = "oft_config.json"
OFT_WEIGHTS = "oft.safetensors"
MAX_SHARD_SIZE = "5GB"
BOS_TOKEN_ID = 1
# The modules that the published base checkpoint does not have.
HEADS = ("action_head", "proprio_projector")
_FLOATS = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}


def write(
    folder: Path,
    state: Mapping[str, Tensor],
    spec: OpenVLASpec,
    norm_stats: Mapping[str, Any],
    oft: OftSpec | None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Write weights, of their own shapes, and configuration.

    An OFT head goes to files of its own beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = {name: tensor for name, tensor in state.items() if not is_head(name)}
    _write_weights(folder, base, max_shard_size)
    _write_json(folder / "config.json", _config_fields(base, spec, norm_stats))
    _write_json(folder / "generation_config.json", _generation_fields(spec))
    if oft is not None:
        head = {name: tensor for name, tensor in state.items() if is_head(name)}
        save_file(_plain(head), folder / OFT_WEIGHTS, metadata={"format": "pt"})
        _write_json(folder / OFT_CONFIG, asdict(oft))


def is_head(name: str) -> bool:
    """Whether a parameter belongs to an OFT head rather than to the published base."""
    return name.partition(".")[0] in HEADS


def check_names(expected: Collection[str], found: Collection[str], where: str) -> None:
    """Raise a UserError naming parameters that are missing or unexpected."""
    missing, foreign = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    problems = [
        f"{kind} {len(names)}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        for kind, names in (("missing", missing), ("unexpected", foreign))
        if names
    ]
    if problems:
        raise UserError(
            f"{where}: expected the parameters that config.json describes, found "
            f"{'; '.join(problems)}; use weights and config.json of one checkpoint, adapters merged"
        )


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def _write_weights(folder: Path, state: Mapping[str, Tensor], max_shard_size: str) -> None:
    plan = split_torch_state_dict_into_shards(dict(state), max_shard_size=max_shard_size)
    for name, keys in plan.filename_to_tensors.items():
        shard = _plain({key: state[key] for key in keys})
        save_file(shard, folder / name, metadata={"format": "pt"})
    # Files of an earlier save with other shards would be loaded as part of this one.
    for file in folder.glob("model*.safetensors"):
        if file.name not in plan.filename_to_tensors:
            file.unlink()
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(folder / INDEX, index)
    else:
        (folder / INDEX).unlink(missing_ok=True)


def _config_fields(
    state: Mapping[str, Tensor], spec: OpenVLASpec, norm_stats: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of config.json as read, with current statistics and dtype of weights."""
    kind = _FLOATS[state["language_model.lm_head.weight"].dtype]
    fields = with_published_code(spec.raw)
    fields |= {"norm_stats": dict(norm_stats), "torch_dtype": kind}
    fields["text_config"] = {**spec.text, "torch_dtype": kind}
    return fields


def _generation_fields(spec: OpenVLASpec) -> dict[str, Any]:
    fields = {
        "_from_model_config": True,
        "bos_token_id": spec.text.get("bos_token_id", BOS_TOKEN_ID),
        "eos_token_id": spec.text.get("eos_token_id", EOS_TOKEN_ID),
        "pad_token_id": spec.pad_token_id,
    }
    version = spec.raw.get("transformers_version")
    return fields | ({"transformers_version": version} if version else {})


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
