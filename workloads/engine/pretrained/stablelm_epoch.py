"""Reads `stablelm_epoch`, the first StableLM's type with its own code, as transformers' `stablelm`.

Network and weight names are the same; only fields of config.json have other names. No code of the
repository is run.
"""

from collections.abc import Mapping
from typing import Any

from workloads.errors import UserError

KIND = "stablelm_epoch"
_SAME = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_dropout",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "tie_word_embeddings",
    "use_cache",
    "use_qkv_bias",
    "vocab_size",
)
# Not of the network: the version that wrote the file, and code that is not run.
_IDLE = ("architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version")


def native_fields(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a StableLmConfig for a config.json of this kind.

    An unknown field would become a default in silence: it raises UserError, as does a value that
    transformers' StableLM cannot compute. `name` is the model's, for messages.
    """
    left = {
        field: value
        for field, value in own.items()
        if field not in _IDLE and not field.startswith("_")
    }
    fields = {field: left.pop(field) for field in _SAME if field in left}
    heads = left.pop("num_heads", fields.get("num_attention_heads"))
    scaling = left.pop("rotary_scaling_factor", 1.0)
    rope = {
        "rope_type": "default",
        "rope_theta": float(left.pop("rope_theta", 10_000)),
        "partial_rotary_factor": left.pop("rope_pct", 0.25),
    }
    norm = left.pop("norm_eps", 1e-5)
    wrong = {"num_heads": heads} if heads != fields.get("num_attention_heads") else {}
    wrong |= {"rotary_scaling_factor": scaling} if scaling != 1 else {}
    if wrong | left:
        field, value = next(iter((wrong | left).items()))
        raise UserError(
            f"{name}: expected the fields of a {KIND} that transformers' stablelm has too, found "
            f"{field} {value!r}; take a model of type stablelm"
        )
    dtype = own.get("dtype") or own.get("torch_dtype")
    return fields | {"layer_norm_eps": norm, "rope_parameters": rope, "dtype": dtype}
