"""Shapes of vision towers from config.json, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workloads.errors import UserError

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Linear:
    """`count` matrices of one name, as `adapter.targets` spells it; `where` is its part.

    Parts: attention, mlp, vision (a tower's layers), projector (what joins a tower to the text),
    and frozen for those of a tower that never get a gradient.
    """

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
class TowerShape:
    """A vision transformer of the `layers` that are computed.

    patches: what it sees of one image, before any merging, with `extra` tokens of its own (class,
    registers) that it does not hand on; queries: latent ones that look at those. Where a model
    takes images of any size, patch: the side of one in pixels, and merged: the patches of a token's
    side; 0 and 1 elsewhere. values: numbers of one patch of an image;
    headless: without a norm behind its last layer; normed: with one before its first, whose result
    autocast leaves in fp32.
    """

    layers: int
    hidden: int
    intermediate: int
    patches: int
    gated: bool = False
    extra: int = 0
    queries: int = 0
    patch: int = 0
    merged: int = 1
    values: int = 0
    headless: bool = False
    normed: bool = False


def need(fields: Fields, name: str) -> int:
    """A whole number of 1 or more from config.json. Raises UserError where it is none."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"expected a whole number under {name!r} in config.json, found {value!r}")
    return value


Vision = tuple[tuple[TowerShape, ...], tuple[Linear, ...], int]
# LLaVAs, and the language model that each has where its config names none.
LLAVA: Mapping[str, str] = {"llava": "llama", "llava_next": "llama", "llava_onevision": "qwen2"}
# Those whose config names the language model, and the one that they have where it does not.
NAMING: Mapping[str, str] = {
    **LLAVA, "paligemma": "gemma", "smolvlm": "llama", "idefics3": "llama"
}  # fmt: skip
# Tokens of an image, a side, that a SmolVLM merges into one.
SHUFFLED: Mapping[str, int] = {"smolvlm": 2, "idefics3": 2}


def vision(family: str, fields: Fields, hidden: int) -> Vision:
    """Towers, their matrices, and their other parameters; `hidden` is the language model's size."""
    if family == "openvla":
        return _openvla(fields, hidden)
    if family in ("qwen2_vl", "qwen2_5_vl"):
        return _qwen_vision(family, fields, hidden)
    if family in LLAVA:
        return _llava(family, fields, hidden)
    if family == "kosmos-2":
        return _kosmos2(fields, hidden)
    if family == "paligemma":
        return _paligemma(fields, hidden)
    if family in SHUFFLED:
        return _smolvlm(family, fields, hidden)
    return (), (), 0


# An image of 512 x 512, where the size of images is unknown.
_USUAL_SIDE = 512


def _qwen_vision(family: str, fields: Fields, hidden: int) -> Vision:
    vision = fields.get("vision_config") or {}
    new = family == "qwen2_5_vl"
    width = int(vision.get("hidden_size", 1280) if new else vision.get("embed_dim", 1280))
    depth, patch = int(vision.get("depth", 32)), int(vision.get("patch_size", 14))
    out = int(vision.get("out_hidden_size", hidden) if new else vision.get("hidden_size", hidden))
    middle = int(
        vision.get("intermediate_size", 3420) if new else width * vision.get("mlp_ratio", 4)
    )
    merge = int(vision.get("spatial_merge_size", 2))
    merged = width * merge**2
    names = ("gate_proj", "up_proj", "down_proj") if new else ("fc1", "fc2")
    rows = [("qkv", width, 3 * width), ("proj", width, width)]
    rows += [(name, width, middle) for name in names[:-1]] + [(names[-1], middle, width)]
    linears = [Linear(name, i, o, depth, "vision") for name, i, o in rows]
    linears += [
        Linear("0", merged, merged, 1, "projector"),
        Linear("2", merged, out, 1, "projector"),
    ]
    biases = sum(linear.outputs * linear.count for linear in linears)
    # RMSNorm in the newer one, LayerNorm with its bias in the older: two a layer and the merger's.
    norms = (2 * depth + 1) * width * (1 if new else 2)
    channels = int(vision.get("in_channels", vision.get("in_chans", 3)))
    values = channels * int(vision.get("temporal_patch_size", 2)) * patch**2
    tower = TowerShape(
        depth,
        width,
        middle,
        patches=_USUAL_SIDE**2 // patch**2,
        gated=new,
        patch=patch,
        merged=merge,
        values=values,
    )
    return (tower,), tuple(linears), biases + norms + values * width


# width, depth, mlp ratio, register and class tokens, layer scale, attention pool
_TIMM: Mapping[str, tuple[int, int, float, int, bool, bool]] = {
    "vit_large_patch14_reg4_dinov2": (1024, 24, 4.0, 5, True, False),
    "vit_so400m_patch14_siglip_224": (1152, 27, 3.7362, 0, False, True),
}


def _openvla(fields: Fields, hidden: int) -> Vision:
    """One timm tower or two, and the matrices that project their features: two, or three."""
    towers: list[TowerShape] = []
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
    linears += [Linear(name, i, o, 1, "projector") for name, i, o in projector]
    return tuple(towers), tuple(linears), small + sum(o for _, _, o in projector)


def _timm(name: str, changed: Fields, fields: Fields) -> tuple[TowerShape, list[Linear], int]:
    """A tower whose features are those of its last layer but one: the last one, and the pool, are
    held and never computed."""
    width, depth, ratio, tokens, scaled, pooled = _TIMM[name]
    width, depth = int(changed.get("embed_dim", width)), int(changed.get("depth", depth))
    side = int(changed.get("img_size", (fields.get("image_sizes") or [224])[0]))
    patch = int(changed.get("patch_size", 14))
    middle, patches = int(width * ratio), (side // patch) ** 2
    rows = [("qkv", width, 3 * width), ("proj", width, width)]
    mlp = [("fc1", width, middle), ("fc2", middle, width)]
    linears = [Linear(name, i, o, depth - 1, "vision") for name, i, o in rows + mlp]
    linears += [Linear(name, i, o, 1, "frozen") for name, i, o in rows + mlp]
    if pooled:
        # The pool's own query, key and value, projection and MLP.
        rows = [("q", width, width), ("kv", width, 2 * width), ("proj", width, width)]
        linears += [Linear(name, i, o, 1, "frozen") for name, i, o in rows + mlp]
    small = sum(linear.outputs * linear.count for linear in linears)
    small += (2 * depth + 1) * 2 * width + (3 * width if pooled else 0)  # norms, the pool's latent
    small += 2 * depth * width if scaled else 0
    small += 3 * patch**2 * width + width  # the convolution that cuts patches
    small += (patches + tokens) * width  # positions of patches; class and register tokens
    tower = TowerShape(
        depth - 1, width, middle, patches + tokens, extra=tokens, values=3 * patch**2, headless=True
    )
    return tower, linears, small


def _kosmos2(fields: Fields, hidden: int) -> Vision:
    """A CLIP tower, and latent queries that look at its features through one cross-attention."""
    own = fields.get("vision_config") or {}
    tower, linears, small = _clip({**own, "model_type": "clip_vision_model"})
    linears.append(Linear("dense", tower.hidden, hidden, 1, "projector"))
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    linears += [Linear(name, hidden, hidden, 1, "projector") for name in names]
    queries = need(fields, "latent_query_num")
    tower = replace(tower, queries=queries)
    return (tower,), tuple(linears), small + (5 + queries) * hidden


# What a tower's config leaves out, and the towers of a config that names none.
_CLIP: Fields = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TOWERS: Mapping[str, Fields] = {
    "clip_vision_model": _CLIP,
    "siglip_vision_model": {**_CLIP, "patch_size": 16},
}
_CLIP_336: Fields = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "image_size": 336,
    "patch_size": 14,
}
_SIGLIP_384: Fields = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}


def _llava(family: str, fields: Fields, hidden: int) -> Vision:
    """A CLIP or SigLIP tower, and two matrices that project its features."""
    usual = "siglip_vision_model" if family == "llava_onevision" else "clip_vision_model"
    absent = _SIGLIP_384 if family == "llava_onevision" else _CLIP_336
    own = {"model_type": usual, **(fields.get("vision_config") or absent)}
    if own["model_type"] not in _TOWERS:
        known = ", ".join(_TOWERS)
        raise UserError(f"expected a tower of {known} in config.json, found {own['model_type']!r}")
    tower, linears, small = _clip({**_TOWERS[own["model_type"]], **own})
    layers = fields.get("vision_feature_layer", -1)
    wide = tower.hidden * (len(layers) if isinstance(layers, list) else 1)
    linears += [
        Linear("linear_1", wide, hidden, 1, "projector"),
        Linear("linear_2", hidden, hidden, 1, "projector"),
    ]
    small += 2 * hidden if fields.get("multimodal_projector_bias", True) else 0
    if family == "llava":
        return (tower,), tuple(linears), small
    # The others see an image in tiles and once as a whole; a vector ends each row of it.
    side = need({**_TOWERS[own["model_type"]], **own}, "image_size")
    tiles = math.ceil(_USUAL_SIDE / side) ** 2 + 1
    return (replace(tower, patches=tiles * tower.patches),), tuple(linears), small + hidden


def _paligemma(fields: Fields, hidden: int) -> Vision:
    """A SigLIP tower and one matrix that projects its features."""
    own = {**_TOWERS["siglip_vision_model"], **(fields.get("vision_config") or {})}
    tower, linears, small = _clip({**own, "model_type": "siglip_vision_model"})
    linears.append(Linear("linear", tower.hidden, hidden, 1, "projector"))
    return (tower,), tuple(linears), small + hidden


# What SmolVLMs' configs leave out; their towers are SigLIP's without its pool.
_SMOL_TOWER: Fields = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 32,
}


def _smolvlm(family: str, fields: Fields, hidden: int) -> Vision:
    """A tower whose neighbouring tokens one matrix joins."""
    own = {**_SMOL_TOWER, **(fields.get("vision_config") or {}), "vision_use_head": False}
    tower, linears, small = _clip({**own, "model_type": "siglip_vision_model"})
    joined = tower.hidden * shuffled(family, fields) ** 2
    return (tower,), (*linears, Linear("proj", joined, hidden, 1, "projector")), small


def shuffled(family: str, fields: Fields) -> int:
    """How many tokens of an image, a side, become one."""
    return int(fields.get("scale_factor", SHUFFLED[family]))


def _clip(own: Fields) -> tuple[TowerShape, list[Linear], int]:
    """A tower of CLIP, or of SigLIP, which has no class token and one norm less."""
    width, depth, middle = (
        need(own, name) for name in ("hidden_size", "num_hidden_layers", "intermediate_size")
    )
    patch, is_clip = need(own, "patch_size"), own["model_type"] == "clip_vision_model"
    patches = (need(own, "image_size") // patch) ** 2 + is_clip
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    linears = [Linear(name, width, width, depth, "vision") for name in names]
    mlp = [("fc1", width, middle), ("fc2", middle, width)]
    linears += [Linear(name, i, o, depth, "vision") for name, i, o in mlp]
    small = 0
    if not is_clip and own.get("vision_use_head", True):
        # A pool with a query of its own, which nothing here computes. Its three projections are one
        # parameter, which is no matrix of its own to transformers.
        linears.append(Linear("out_proj", width, width, 1, "frozen"))
        linears += [Linear(name, i, o, 1, "frozen") for name, i, o in mlp]
        small += width + 3 * width * width + 3 * width + 2 * width
    small += sum(linear.outputs * linear.count for linear in linears)
    norms = 2 * depth + (2 if is_clip else 1)
    small += norms * 2 * width + patches * width
    # The convolution that cuts patches; then CLIP's class token, or its bias in SigLIP.
    values = need({"num_channels": 3, **own}, "num_channels") * patch**2
    small += values * width + width
    return TowerShape(depth, width, middle, patches, values=values, normed=is_clip), linears, small
