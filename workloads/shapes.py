"""The shape of a model, read from the fields of its config.json: what can be counted without torch.

Counts are exact for the families below; tests compare them with the models that transformers
builds from the same fields.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workloads.errors import UserError

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Linear:
    """`count` matrices of one name, as `adapter.targets` spells it; `where` is its part."""

    name: str
    inputs: int
    outputs: int
    count: int
    where: str

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs * self.count

    def adapter_parameters(self, rank: int) -> int:
        """LoRA's two matrices on each of them."""
        return (self.inputs + self.outputs) * rank * self.count


@dataclass(frozen=True)
class Tower:
    """A vision transformer; `patches` is what it sees of one image, before any merging."""

    layers: int
    hidden: int
    intermediate: int
    patches: int
    gated: bool = False


@dataclass(frozen=True)
class ModelShape:
    """A causal language model, with the vision towers in front of it where it has some.

    `small` counts norms, biases, positions and convolutions: neither quantised nor adapted.
    `norms` is the number of norms a layer has over the hidden size; `layer_norm` tells their kind.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    linears: tuple[Linear, ...]
    small: int
    gated: bool = True
    norms: int = 2
    layer_norm: bool = False
    parallel: bool = False
    towers: tuple[Tower, ...] = ()
    image_tokens: int = 0

    @property
    def parameters_by_kind(self) -> dict[str, int]:
        """embedding, head (0 where tied), attention, mlp, vision, other; they add up to all."""
        table = self.vocab * self.hidden
        kinds = {"embedding": table, "head": 0 if self.tied else table}
        kinds |= {"attention": 0, "mlp": 0, "vision": 0, "other": self.small}
        for linear in self.linears:
            kinds[linear.where] += linear.parameters
        return kinds

    @property
    def parameters(self) -> int:
        """All of them; a tied embedding counts once."""
        return sum(self.parameters_by_kind.values())

    @property
    def embedding(self) -> int:
        """Parameters of the embedding and of an untied head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def linear_parameters(self) -> int:
        """What a quantised base holds in few bits: every matrix but embedding and head."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def layer_parameters(self) -> int:
        """Matrices of one decoder layer."""
        inside = [one for one in self.linears if one.where in ("attention", "mlp")]
        return sum(one.parameters for one in inside) // self.layers

    def adapted(self, targets: Iterable[str]) -> tuple[Linear, ...]:
        """The matrices that `adapter.targets` names; `all-linear` names all but the head."""
        wanted = set(targets)
        if "all-linear" in wanted:
            return self.linears
        head = Linear("lm_head", self.hidden, self.vocab, 1, "head")
        last = {name.rsplit(".", 1)[-1] for name in wanted}
        return tuple(one for one in (*self.linears, head) if one.name in last)


@dataclass(frozen=True)
class _Block:
    """What a family's decoder layer has besides the matrices that all have."""

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    norms: int = 2
    norm_bias: bool = False
    head_norms: int = 0  # parameters of norms over the heads of query and key
    fused: str = ""  # "neox" or "phi" where projections share one matrix
    tied: bool = False
    parallel: bool = False  # attention and MLP read the same stream


def _head_dim(fields: Fields) -> int:
    return int(fields.get("head_dim") or _need(fields, "hidden_size") // _heads(fields))


def _heads(fields: Fields) -> int:
    return int(_need(fields, "num_attention_heads"))


def _kv_heads(fields: Fields) -> int:
    return int(fields.get("num_key_value_heads") or _heads(fields))


def _need(fields: Fields, name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"expected a whole number under {name!r} in config.json, found {value!r}")
    return value


def _llama(fields: Fields) -> _Block:
    bias = bool(fields.get("attention_bias", False))
    return _Block(bias, bias, bool(fields.get("mlp_bias", False)))


def _qwen2(fields: Fields) -> _Block:
    return _Block(qkv_bias=True)


def _qwen3(fields: Fields) -> _Block:
    bias = bool(fields.get("attention_bias", False))
    return _Block(bias, bias, head_norms=2 * _head_dim(fields))


def _gemma(fields: Fields) -> _Block:
    bias = bool(fields.get("attention_bias", False))
    return _Block(bias, bias, tied=True)


def _gemma2(fields: Fields) -> _Block:
    bias = bool(fields.get("attention_bias", False))
    return _Block(bias, bias, norms=4, tied=True)


def _stablelm(fields: Fields) -> _Block:
    heads = (_heads(fields) + _kv_heads(fields)) * _head_dim(fields)
    parallel = bool(fields.get("use_parallel_residual", False))
    return _Block(
        qkv_bias=bool(fields.get("use_qkv_bias", False)),
        norms=1 if parallel else 2,
        norm_bias=True,
        parallel=parallel,
        head_norms=heads if fields.get("qk_layernorm") else 0,
    )


def _gpt_neox(fields: Fields) -> _Block:
    bias = bool(fields.get("attention_bias", True))
    parallel = bool(fields.get("use_parallel_residual", True))
    return _Block(bias, bias, True, gated=False, norm_bias=True, fused="neox", parallel=parallel)


def _phi3(fields: Fields) -> _Block:
    return _Block(fused="phi")


_BLOCKS: Mapping[str, Callable[[Fields], _Block]] = {
    "llama": _llama,
    "mistral": lambda fields: _Block(),
    "qwen2": _qwen2,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "stablelm": _stablelm,
    "stablelm_epoch": _stablelm,
    "gpt_neox": _gpt_neox,
    "phi3": _phi3,
}
FAMILIES = tuple(sorted((*_BLOCKS, "openvla")))
# Fields that config.json may leave out because transformers has them as defaults.
_DEFAULTS: Mapping[str, Fields] = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256},
    "qwen3": {"head_dim": 128},
    "openvla": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
}


def from_fields(fields: Fields) -> ModelShape:
    """The shape that a parsed config.json describes; UserError for a family not listed above."""
    family = str(fields.get("model_type"))
    if family not in FAMILIES:
        raise UserError(
            f"expected a model_type of {', '.join(FAMILIES)} in config.json, found {family!r}"
        )
    # Models that see nest their language model's fields; the older of them do not.
    text = {**_DEFAULTS.get(family, {}), **fields, **(fields.get("text_config") or {})}
    block = _BLOCKS["llama" if family == "openvla" else family](text)
    tied = fields.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    linears, biases = _matrices(text, block)
    small = biases + _norm_parameters(text, block)
    towers, vision, vision_small = _vision(family, fields, text)
    return ModelShape(
        family=family,
        layers=_need(text, "num_hidden_layers"),
        hidden=_need(text, "hidden_size"),
        heads=_heads(text),
        kv_heads=_kv_heads(text),
        head_dim=_head_dim(text),
        intermediate=_need(text, "intermediate_size"),
        vocab=_need(text, "vocab_size"),
        tied=block.tied if tied is None else bool(tied),
        linears=linears + vision,
        small=small + vision_small,
        gated=block.gated,
        norms=block.norms,
        layer_norm=block.norm_bias,
        parallel=block.parallel,
        towers=towers,
        image_tokens=towers[0].patches if family == "openvla" else 0,
    )


def _matrices(text: Fields, block: _Block) -> tuple[tuple[Linear, ...], int]:
    """The decoder's matrices, and the number of their biases."""
    hidden, middle = _need(text, "hidden_size"), _need(text, "intermediate_size")
    layers = _need(text, "num_hidden_layers")
    query, key = _heads(text) * _head_dim(text), _kv_heads(text) * _head_dim(text)
    # Per matrix: name, inputs, outputs, has a bias, part.
    qkv = [(name, hidden, size, block.qkv_bias, "attention") for name, size in
           (("q_proj", query), ("k_proj", key), ("v_proj", key))]  # fmt: skip
    output = ("o_proj", query, hidden, block.output_bias, "attention")
    mlp = [("gate_proj", hidden, middle, block.mlp_bias, "mlp"),
           ("up_proj", hidden, middle, block.mlp_bias, "mlp"),
           ("down_proj", middle, hidden, block.mlp_bias, "mlp")]  # fmt: skip
    if block.fused == "neox":
        qkv = [("query_key_value", hidden, query + 2 * key, block.qkv_bias, "attention")]
        output = ("dense", query, hidden, block.output_bias, "attention")
        mlp = [("dense_h_to_4h", hidden, middle, block.mlp_bias, "mlp"),
               ("dense_4h_to_h", middle, hidden, block.mlp_bias, "mlp")]  # fmt: skip
    elif block.fused == "phi":
        qkv = [("qkv_proj", hidden, query + 2 * key, block.qkv_bias, "attention")]
        mlp[:2] = [("gate_up_proj", hidden, 2 * middle, block.mlp_bias, "mlp")]
    rows = [*qkv, output, *mlp]
    linears = tuple(Linear(name, i, o, layers, where) for name, i, o, _, where in rows)
    return linears, layers * sum(outputs for _, _, outputs, bias, _ in rows if bias)


def _norm_parameters(text: Fields, block: _Block) -> int:
    one = _need(text, "hidden_size") * (2 if block.norm_bias else 1)
    return _need(text, "num_hidden_layers") * (block.norms * one + block.head_norms) + one


_Vision = tuple[tuple[Tower, ...], tuple[Linear, ...], int]


def _vision(family: str, fields: Fields, text: Fields) -> _Vision:
    """Towers, their matrices, and their other parameters."""
    if family == "openvla":
        return _openvla(fields, _need(text, "hidden_size"))
    if family in ("qwen2_vl", "qwen2_5_vl"):
        return _qwen_vision(family, fields, _need(text, "hidden_size"))
    return (), (), 0


# A picture of 512 x 512, where nothing says how large the pictures are.
_USUAL_SIDE = 512


def _qwen_vision(family: str, fields: Fields, hidden: int) -> _Vision:
    vision = fields.get("vision_config") or {}
    new = family == "qwen2_5_vl"
    width = int(vision.get("hidden_size", 1280) if new else vision.get("embed_dim", 1280))
    depth, patch = int(vision.get("depth", 32)), int(vision.get("patch_size", 14))
    out = int(vision.get("out_hidden_size", hidden) if new else vision.get("hidden_size", hidden))
    middle = int(
        vision.get("intermediate_size", 3420) if new else width * vision.get("mlp_ratio", 4)
    )
    merged = width * int(vision.get("spatial_merge_size", 2)) ** 2
    names = ("gate_proj", "up_proj", "down_proj") if new else ("fc1", "fc2")
    rows = [("qkv", width, 3 * width), ("proj", width, width)]
    rows += [(name, width, middle) for name in names[:-1]] + [(names[-1], middle, width)]
    linears = [Linear(name, i, o, depth, "vision") for name, i, o in rows]
    linears += [Linear("0", merged, merged, 1, "vision"), Linear("2", merged, out, 1, "vision")]
    biases = sum(one.outputs * one.count for one in linears)
    # RMSNorm in the newer one, LayerNorm with its bias in the older: two a layer and the merger's.
    norms = (2 * depth + 1) * width * (1 if new else 2)
    channels = int(vision.get("in_channels", vision.get("in_chans", 3)))
    convolution = channels * int(vision.get("temporal_patch_size", 2)) * patch**2 * width
    tower = Tower(depth, width, middle, math.ceil(_USUAL_SIDE / patch) ** 2, gated=new)
    return (tower,), tuple(linears), biases + norms + convolution


# width, depth, mlp ratio, register and class tokens, layer scale, attention pool
_TIMM: Mapping[str, tuple[int, int, float, int, bool, bool]] = {
    "vit_large_patch14_reg4_dinov2": (1024, 24, 4.0, 5, True, False),
    "vit_so400m_patch14_siglip_224": (1152, 27, 3.7362, 0, False, True),
}


def _openvla(fields: Fields, hidden: int) -> _Vision:
    """One timm tower or two, and the matrices that project their features: two, or three."""
    towers: list[Tower] = []
    linears: list[Linear] = []
    small = 0
    for name in fields.get("timm_model_ids") or list(_TIMM):
        if name.split(".")[0] not in _TIMM:
            raise UserError(f"expected towers {', '.join(_TIMM)} in config.json, found {name!r}")
        changed = (fields.get("tiny_vision_towers") or {}).get(name, {})
        tower, matrices, others = _timm(name.split(".")[0], changed, fields)
        towers.append(tower)
        linears += matrices
        small += others
    if len(towers) not in (1, 2):
        raise UserError(f"expected one or two towers in config.json, found {len(towers)}")
    wide = sum(tower.hidden for tower in towers)
    projector = [("fc1", wide, 4 * wide), ("fc2", 4 * wide, hidden), ("fc3", hidden, hidden)]
    if len(towers) == 1:
        projector = [("fc1", wide, hidden), ("fc2", hidden, hidden)]
    linears += [Linear(name, i, o, 1, "vision") for name, i, o in projector]
    return tuple(towers), tuple(linears), small + sum(o for _, _, o in projector)


def _timm(name: str, changed: Fields, fields: Fields) -> tuple[Tower, list[Linear], int]:
    width, depth, ratio, tokens, scaled, pooled = _TIMM[name]
    width, depth = int(changed.get("embed_dim", width)), int(changed.get("depth", depth))
    side = int(changed.get("img_size", (fields.get("image_sizes") or [224])[0]))
    patch = int(changed.get("patch_size", 14))
    middle, patches = int(width * ratio), (side // patch) ** 2
    rows = [("qkv", width, 3 * width), ("proj", width, width)]
    mlp = [("fc1", width, middle), ("fc2", middle, width)]
    linears = [Linear(name, i, o, depth, "vision") for name, i, o in rows + mlp]
    if pooled:
        # The pool's own query, key and value, projection and MLP; nothing in OpenVLA uses it.
        rows = [("q", width, width), ("kv", width, 2 * width), ("proj", width, width)]
        linears += [Linear(name, i, o, 1, "vision") for name, i, o in rows + mlp]
    small = sum(one.outputs * one.count for one in linears)
    small += (2 * depth + 1) * 2 * width + (3 * width if pooled else 0)  # norms, the pool's latent
    small += 2 * depth * width if scaled else 0
    small += 3 * patch**2 * width + width  # the convolution that cuts patches
    small += (patches + tokens) * width  # positions of patches; class and register tokens
    return Tower(depth, width, middle, patches + tokens), linears, small
