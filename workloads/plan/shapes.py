"""The shape of a model from the fields of its config.json, without torch.

Counts are exact for the families below; tests compare them with the models that transformers
builds from the same fields.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from workloads.errors import UserError
from workloads.plan.vision_shapes import (
    NAMING,
    SHUFFLED,
    Fields,
    Linear,
    TowerShape,
    need,
    shuffled,
    vision,
)  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """A causal language model, with its vision towers, if any.

    `small` counts norms, biases, positions and convolutions: neither quantised nor adapted.
    `norms` is the number of norms a layer has over the hidden size; `layer_norm` tells their kind,
    `head_norm` whether queries and keys have norms over each head too; `capped`: Gemma 2 keeps
    scores and logits between bounds.
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
    head_norm: bool = False
    capped: bool = False
    parallel: bool = False
    towers: tuple[TowerShape, ...] = ()
    image_tokens: int = 0

    @property
    def parameters_by_kind(self) -> dict[str, int]:
        """embedding, head (0 where tied), parts of the matrices, other; they add up to all."""
        table = self.vocab * self.hidden
        kinds = {"embedding": table, "head": 0 if self.tied else table}
        kinds |= dict.fromkeys(("attention", "mlp", "vision", "projector", "frozen"), 0)
        kinds["other"] = self.small
        for linear in self.linears:
            kinds[linear.where] += linear.parameters
        return kinds

    @property
    def parameters(self) -> int:
        """Number of all parameters; a tied embedding counts once."""
        return sum(self.parameters_by_kind.values())

    @property
    def embedding(self) -> int:
        """Parameters of the embedding and of an untied head."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def linear_parameters(self) -> int:
        """Parameters that a quantised base holds in few bits: all but embedding and head."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def frozen(self) -> int:
        """Numbers of the matrices that get no gradient even where all weights are trained."""
        return self.parameters_by_kind["frozen"]

    @property
    def decoder(self) -> tuple[Linear, ...]:
        """The matrices of all decoder layers."""
        return tuple(linear for linear in self.linears if linear.where in ("attention", "mlp"))

    @property
    def layer_parameters(self) -> int:
        """Numbers of one decoder layer's matrices."""
        return sum(linear.parameters for linear in self.decoder) // self.layers

    def adapted(self, targets: Iterable[str]) -> tuple[Linear, ...]:
        """The matrices that `adapter.targets` names; `all-linear` names all but the head, and but
        those that would never learn."""
        wanted = set(targets)
        if "all-linear" in wanted:
            return tuple(linear for linear in self.linears if linear.where != "frozen")
        head = Linear("lm_head", self.hidden, self.vocab, 1, "head")
        last = {name.rsplit(".", 1)[-1] for name in wanted}
        return tuple(linear for linear in (*self.linears, head) if linear.name in last)

    def trained_whole(self, names: Iterable[str]) -> tuple[Linear, ...]:
        """What `adapter.modules_to_save` names: matrices, the embedding, the head; tied ones are
        one, the head. Norms and other small ones are left out."""
        last = {name.rsplit(".", 1)[-1] for name in names}
        found = [linear for linear in self.linears if linear.name in last]
        head = not last.isdisjoint(HEADS if not self.tied else HEADS + EMBEDDINGS)
        if head:
            found.append(Linear("lm_head", self.hidden, self.vocab, 1, "head"))
        if not self.tied and not last.isdisjoint(EMBEDDINGS):
            found.append(Linear("embed_tokens", self.vocab, self.hidden, 1, "embedding"))
        return tuple(found)


# Names of embeddings and heads, in the families below.
EMBEDDINGS, HEADS = ("embed_tokens", "embed_in"), ("lm_head", "embed_out")


@dataclass(frozen=True)
class _Block:
    """Features of a family's decoder layer besides the usual matrices."""

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    norms: int = 2
    norm_bias: bool = False
    head_norms: int = 0  # parameters of norms over the heads of query and key
    fused: str = ""  # "neox" or "phi" where projections share one matrix, "kosmos" by its names
    tied: bool = False
    parallel: bool = False  # attention and MLP read the same stream


def _head_dim(fields: Fields) -> int:
    if fields.get("head_dim"):
        return need(fields, "head_dim")
    return _divided(fields, "hidden_size", _heads(fields), "num_attention_heads")


def _divided(fields: Fields, name: str, parts: int, by: str) -> int:
    if need(fields, name) % parts:
        raise UserError(
            f"expected {name} to be a multiple of {by} ({parts}) in config.json, "
            f"found {fields[name]}"
        )
    return need(fields, name) // parts


def _heads(fields: Fields) -> int:
    return int(need(fields, "num_attention_heads"))


def _kv_heads(fields: Fields) -> int:
    if not fields.get("num_key_value_heads"):
        return _heads(fields)
    key = need(fields, "num_key_value_heads")
    _divided(fields, "num_attention_heads", key, "num_key_value_heads")
    return key


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


def _kosmos2(fields: Fields) -> _Block:
    # Besides two norms a layer, one inside the attention and one inside the MLP.
    inside = 2 * need(fields, "intermediate_size")
    return _Block(
        True, True, True, False, 3, norm_bias=True, head_norms=inside, fused="kosmos", tied=True
    )


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
    "kosmos-2": _kosmos2,
}
# Kosmos-2's names of the usual fields.
_KOSMOS_NAMES = {
    "embed_dim": "hidden_size",
    "ffn_dim": "intermediate_size",
    "layers": "num_hidden_layers",
    "attention_heads": "num_attention_heads",
}
FAMILIES = tuple(sorted((*_BLOCKS, "openvla", *NAMING)))
_LLAMA_7B: Fields = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
# Fields that config.json may leave out because transformers has them as defaults.
_DEFAULTS: Mapping[str, Fields] = {
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256},
    "qwen3": {"head_dim": 128},
    "openvla": _LLAMA_7B,
}
# The same for nested configs, as of published LLaVAs.
_NESTED: Mapping[str, Fields] = {
    "llama": _LLAMA_7B,
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "qwen2": {
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 151936,
    },
}
# LLaVAs whose head is tied by the language model's field, whatever their own says.
_TIES_AS_TEXT = ("llava", "llava_onevision")


def from_fields(fields: Fields) -> ModelShape:
    """The shape that a parsed config.json describes; UserError for a family not listed above."""
    family = str(fields.get("model_type"))
    if family not in FAMILIES:
        raise UserError(
            f"expected a model_type of {', '.join(FAMILIES)} in config.json, found {family!r}"
        )
    text = _text(family, fields)
    language = _language(family, fields)
    block = _BLOCKS[language](text)
    tied = fields.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    if family in _TIES_AS_TEXT:
        tied = tied or text.get("tie_word_embeddings")
    linears, biases = _matrices(text, block)
    small = biases + _norm_parameters(text, block)
    towers, linears_of_vision, vision_small = vision(family, fields, need(text, "hidden_size"))
    return ModelShape(
        family=family,
        layers=need(text, "num_hidden_layers"),
        hidden=need(text, "hidden_size"),
        heads=_heads(text),
        kv_heads=_kv_heads(text),
        head_dim=_head_dim(text),
        intermediate=need(text, "intermediate_size"),
        vocab=need(text, "vocab_size"),
        tied=block.tied if tied is None else bool(tied),
        linears=linears + linears_of_vision,
        small=small + vision_small,
        gated=block.gated,
        norms=block.norms,
        layer_norm=block.norm_bias,
        head_norm=block.head_norms > 0 and block.fused != "kosmos",
        capped=language == "gemma2",
        parallel=block.parallel,
        towers=towers,
        image_tokens=_image_tokens(family, fields, towers),
    )


def _image_tokens(family: str, fields: Fields, towers: tuple[TowerShape, ...]) -> int:
    """Tokens that an image always becomes; 0 where its size decides."""
    if family == "openvla":
        return towers[0].patches - towers[0].extra
    if family == "paligemma":
        return towers[0].patches
    if family in SHUFFLED:
        return towers[0].patches // shuffled(family, fields) ** 2
    return need(fields, "latent_query_num") if family == "kosmos-2" else 0


def _language(family: str, fields: Fields) -> str:
    """The family of the language model, which some vision-language models name in text_config."""
    if family == "openvla":
        return "llama"
    if family not in NAMING:
        return family
    named = str((fields.get("text_config") or {}).get("model_type", NAMING[family]))
    if named not in _BLOCKS:
        known = ", ".join(sorted(_BLOCKS))
        raise UserError(f"expected text_config of {known} in config.json, found {named!r}")
    return named


def _text(family: str, fields: Fields) -> Fields:
    """Fields of the language model; vision-language models nest them, except older ones."""
    own = fields.get("text_config") or {}
    if family in NAMING:
        language = _language(family, fields)
        return {**_DEFAULTS.get(language, {}), **_NESTED.get(language, {}), **own}
    if family == "kosmos-2":
        return {**own, **{new: own[old] for old, new in _KOSMOS_NAMES.items() if old in own}}
    return {**_DEFAULTS.get(family, {}), **fields, **own}


def _matrices(text: Fields, block: _Block) -> tuple[tuple[Linear, ...], int]:
    """The decoder's matrices, and the number of their biases."""
    hidden, middle = need(text, "hidden_size"), need(text, "intermediate_size")
    layers = need(text, "num_hidden_layers")
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
    elif block.fused == "kosmos":
        output = ("out_proj", query, hidden, block.output_bias, "attention")
        mlp = [("fc1", hidden, middle, block.mlp_bias, "mlp"),
               ("fc2", middle, hidden, block.mlp_bias, "mlp")]  # fmt: skip
    elif block.fused == "phi":
        qkv = [("qkv_proj", hidden, query + 2 * key, block.qkv_bias, "attention")]
        mlp[:2] = [("gate_up_proj", hidden, 2 * middle, block.mlp_bias, "mlp")]
    rows = [*qkv, output, *mlp]
    linears = tuple(Linear(name, i, o, layers, where) for name, i, o, _, where in rows)
    return linears, layers * sum(outputs for _, _, outputs, bias, _ in rows if bias)


def _norm_parameters(text: Fields, block: _Block) -> int:
    norm = need(text, "hidden_size") * (2 if block.norm_bias else 1)
    return need(text, "num_hidden_layers") * (block.norms * norm + block.head_norms) + norm


__all__ = [
    "EMBEDDINGS",
    "FAMILIES",
    "HEADS",
    "Fields",
    "Linear",
    "ModelShape",
    "TowerShape",
    "from_fields",
]
