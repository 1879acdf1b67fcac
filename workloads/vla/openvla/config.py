"""The config.json of an OpenVLA checkpoint, read without torch.

The field names and their defaults are those of the published checkpoints; `raw` keeps the file as
it was found, so that a checkpoint written from it has the same fields.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from workloads.errors import UserError

ACTIVATIONS = ("gelu", "quick_gelu", "gelu_tanh", "silu", "relu")
RESIZE_STRATEGIES = ("letterbox", "resize-naive", "resize-crop")
CHANNELS_PER_TOWER = 3
PUBLISHED = "openvla/openvla-7b"


@dataclass(frozen=True)
class Tower:
    """The shape of one vision transformer, in timm's terms."""

    timm_id: str
    width: int
    depth: int
    heads: int
    patch: int
    image_size: int
    mlp_ratio: float = 4.0
    registers: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attention_pool: bool = False
    activation: str = "gelu"

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch) ** 2

    @property
    def prefix_tokens(self) -> int:
        return self.registers + int(self.class_token)

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


@dataclass(frozen=True)
class OpenVLASpec:
    """An OpenVLA checkpoint's shape and constants; `text` holds the LlamaConfig arguments."""

    towers: tuple[Tower, ...]
    text: Mapping[str, Any]
    vocab_size: int
    pad_to_multiple_of: int
    pad_token_id: int
    action_bins: int
    norm_stats: Mapping[str, Any]
    output_projector_states: bool
    raw: Mapping[str, Any]

    @property
    def fused(self) -> bool:
        return len(self.towers) == 2

    @property
    def vision_width(self) -> int:
        return sum(tower.width for tower in self.towers)

    @property
    def patches(self) -> int:
        return self.towers[0].patches

    @property
    def channels(self) -> int:
        return CHANNELS_PER_TOWER * len(self.towers)

    @property
    def action_vocab_size(self) -> int:
        """The tokenizer's own size: action ids are its last ones, padding rows come after it."""
        return self.vocab_size - self.pad_to_multiple_of


@dataclass(frozen=True)
class OftSpec:
    """The OFT head: chunk x action_dim values predicted in one pass, with or without proprio."""

    action_dim: int
    action_chunk: int
    proprio_dim: int | None = None
    head: str = "l1"
    blocks: int = 2

    def __post_init__(self) -> None:
        if self.head not in ("l1", "discrete"):
            raise UserError(f"expected an OFT head of l1 or discrete, found {self.head!r}")
        sizes = (self.action_dim, self.action_chunk, self.blocks, self.proprio_dim or 1)
        if min(sizes) < 1:
            raise UserError(f"expected OFT sizes of at least 1, found {self}; correct them")

    @property
    def slots(self) -> int:
        return self.action_dim * self.action_chunk


def _dino(timm_id: str, width: int, depth: int, heads: int) -> Tower:
    return Tower(
        timm_id, width, depth, heads, 14, 224, registers=4, class_token=True, layer_scale=True
    )


def _siglip(
    timm_id: str, width: int, depth: int, heads: int, patch: int, size: int, ratio: float = 4.0
) -> Tower:
    return Tower(timm_id, width, depth, heads, patch, size, mlp_ratio=ratio, attention_pool=True)


_SO400M_MLP_RATIO = 3.7362
_KNOWN = (
    _dino("vit_small_patch14_reg4_dinov2", 384, 12, 6),
    _dino("vit_base_patch14_reg4_dinov2", 768, 12, 12),
    _dino("vit_large_patch14_reg4_dinov2", 1024, 24, 16),
    _siglip("vit_base_patch16_siglip_224", 768, 12, 12, 16, 224),
    _siglip("vit_base_patch16_siglip_256", 768, 12, 12, 16, 256),
    _siglip("vit_base_patch16_siglip_384", 768, 12, 12, 16, 384),
    _siglip("vit_large_patch16_siglip_256", 1024, 24, 16, 16, 256),
    _siglip("vit_large_patch16_siglip_384", 1024, 24, 16, 16, 384),
    _siglip("vit_so400m_patch14_siglip_224", 1152, 27, 16, 14, 224, _SO400M_MLP_RATIO),
    _siglip("vit_so400m_patch14_siglip_384", 1152, 27, 16, 14, 384, _SO400M_MLP_RATIO),
)
TOWERS: Mapping[str, Tower] = {tower.timm_id: tower for tower in _KNOWN}

# For a config.json that names only the pair of towers, as early checkpoints do.
BACKBONES: Mapping[str, tuple[str, ...]] = {
    "dinosiglip-vit-so-224px": (
        "vit_large_patch14_reg4_dinov2.lvd142m",
        "vit_so400m_patch14_siglip_224",
    ),
    "dinosiglip-vit-so-384px": (
        "vit_large_patch14_reg4_dinov2.lvd142m",
        "vit_so400m_patch14_siglip_384",
    ),
    "dinov2-vit-l": ("vit_large_patch14_reg4_dinov2.lvd142m",),
    "siglip-vit-so400m": ("vit_so400m_patch14_siglip_224",),
    "siglip-vit-so400m-384px": ("vit_so400m_patch14_siglip_384",),
    "siglip-vit-b16-224px": ("vit_base_patch16_siglip_224",),
    "siglip-vit-b16-256px": ("vit_base_patch16_siglip_256",),
    "siglip-vit-b16-384px": ("vit_base_patch16_siglip_384",),
}
_OVERRIDES = {
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "patch_size": "patch",
    "mlp_ratio": "mlp_ratio",
    "reg_tokens": "registers",
    "img_size": "image_size",
}


def with_published_code(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with `auto_map` naming the repository whose code the original tools run.

    A checkpoint that we write has no code, so a bare module name would be invalid.
    """
    names = fields.get("auto_map")
    if not isinstance(names, Mapping):
        return dict(fields)
    full = {
        auto: name if not isinstance(name, str) or "--" in name else f"{PUBLISHED}--{name}"
        for auto, name in names.items()
    }
    return {**fields, "auto_map": full}


def parse(raw: Mapping[str, Any], where: str = "config.json") -> OpenVLASpec:
    """Turn the fields of config.json into a spec; raises UserError naming the field at fault."""
    with mistakes_named(where):
        return _parsed(raw, where)


@contextmanager
def mistakes_named(where: str) -> Iterator[None]:
    """Context manager around the reading of a checkpoint's fields.

    Raises UserError with the file for a value of the wrong kind.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        text = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(
            f"{where}: expected the fields of a checkpoint, found a mistake: {text}; copy it again"
        ) from error


def _parsed(raw: Mapping[str, Any], where: str) -> OpenVLASpec:
    if raw.get("model_type") != "openvla":
        raise UserError(
            f"{where}: expected model_type openvla, found {raw.get('model_type')!r}; "
            "name an OpenVLA checkpoint"
        )
    text = _text(raw, where)
    vocab_size = int(text.get("vocab_size", 32000))
    pad = int(raw.get("pad_to_multiple_of", 64))
    bins = int(raw.get("n_action_bins", 256))
    if vocab_size - pad < bins:
        raise UserError(
            f"{where}: expected room for {bins} action tokens, found a vocabulary of {vocab_size} "
            f"with {pad} padding rows; correct pad_to_multiple_of or text_config.vocab_size"
        )
    return OpenVLASpec(
        towers=_towers(raw, where),
        text=text,
        vocab_size=vocab_size,
        pad_to_multiple_of=pad,
        pad_token_id=int(raw.get("pad_token_id", 32000)),
        action_bins=bins,
        norm_stats=raw.get("norm_stats") or {},
        output_projector_states=bool(raw.get("output_projector_states", False)),
        raw=dict(raw),
    )


def _text(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    text = dict(raw.get("text_config") or {})
    family = text.get("model_type", "llama")
    if family != "llama":
        raise UserError(f"{where}: expected a llama text_config, found {family!r}")
    if text.get("tie_word_embeddings"):
        raise UserError(f"{where}: expected untied word embeddings, found tie_word_embeddings true")
    return text


def _towers(raw: Mapping[str, Any], where: str) -> tuple[Tower, ...]:
    ids = _tower_ids(raw, where)
    fused = raw.get("use_fused_vision_backbone")
    if fused is None:
        fused = len(ids) == 2
    if len(ids) != (2 if fused else 1):
        raise UserError(
            f"{where}: expected {2 if fused else 1} timm_model_ids where use_fused_vision_backbone "
            f"is {str(bool(fused)).lower()}, found {len(ids)}; correct one of the two"
        )
    towers = tuple(_tower(raw, index, timm_id, where) for index, timm_id in enumerate(ids))
    if len({tower.patches for tower in towers}) != 1:
        raise UserError(
            f"{where}: expected towers with equal numbers of patches, found "
            f"{[tower.patches for tower in towers]}; correct image_sizes"
        )
    return towers


def _tower_ids(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    ids = raw.get("timm_model_ids")
    if ids:
        return (ids,) if isinstance(ids, str) else tuple(ids)
    backbone = raw.get("vision_backbone_id")
    if backbone in BACKBONES:
        return BACKBONES[str(backbone)]
    raise UserError(
        f"{where}: expected timm_model_ids or a known vision_backbone_id, found {backbone!r}; "
        f"known: {', '.join(BACKBONES)}"
    )


def _tower(raw: Mapping[str, Any], index: int, timm_id: str, where: str) -> Tower:
    # The part after the dot names pretrained weights, not a shape.
    known = TOWERS.get(timm_id.partition(".")[0])
    if known is None:
        raise UserError(
            f"{where}: expected a known vision tower, found {timm_id!r}; known: {', '.join(TOWERS)}"
        )
    changes: dict[str, Any] = {"timm_id": timm_id, "activation": _activation(raw, index, where)}
    size = _at(raw.get("image_sizes"), index)
    if size is not None:
        changes["image_size"] = _square(size, where)
    overrides = (raw.get("tiny_vision_towers") or {}).get(timm_id, {})
    for name, value in overrides.items():
        if name == "pretrained":
            continue
        if name not in _OVERRIDES:
            raise UserError(
                f"{where}: unknown field {name!r} of tiny_vision_towers[{timm_id!r}]; "
                f"valid: {', '.join(_OVERRIDES)}"
            )
        changes[_OVERRIDES[name]] = _square(value, where) if name == "img_size" else value
    tower = replace(known, **changes)
    if min(tower.width, tower.depth, tower.heads, tower.patch, tower.image_size) < 1:
        raise UserError(f"{where}: expected sizes of at least 1, found {tower}; correct them")
    if tower.width % tower.heads:
        raise UserError(f"{where}: expected a width divisible by the heads, found {tower}")
    return tower


def _at(value: Any, index: int) -> Any:
    """The index-th of a list; a single value stands for every tower."""
    if not isinstance(value, list | tuple):
        return value
    return value[index] if index < len(value) else None


def _square(size: Any, where: str) -> int:
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise UserError(f"{where}: expected a square image size in pixels, found {size!r}")
    return size


def _activation(raw: Mapping[str, Any], index: int, where: str) -> str:
    name = _at(raw.get("timm_override_act_layers"), index)
    if name is None:
        return "gelu"
    name = {"quickgelu": "quick_gelu", "swish": "silu"}.get(name, name)
    if name not in ACTIVATIONS:
        raise UserError(
            f"{where}: expected timm_override_act_layers of {', '.join(ACTIVATIONS)}, "
            f"found {name!r}"
        )
    return str(name)
