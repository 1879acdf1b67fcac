"""Loads the policy with a head of a profile or of an exported folder."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from workloads.config.sections import Model
from workloads.engine.export.export import SKELETON
from workloads.engine.pretrained.adapter import ALL_LINEAR, lora_config
from workloads.engine.pretrained.base import Base, load_config, locate
from workloads.engine.pretrained.files import Reporter, lasting_name, weight_files, weights_dtype
from workloads.engine.pretrained.load import IMAGES
from workloads.engine.pretrained.load import load_model as load_backbone
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.run import Run
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Sources
from workloads.vla.processing import FILE, ImageProcessor
from workloads.vla.resuming import resumed
from workloads.vla.robovlms.backbones import Backbone, backbone_of, usable_tokens
from workloads.vla.robovlms.modeling import PolicyModel
from workloads.vla.robovlms.spec import MODEL_TYPE, HeadSize, PolicySpec, parse

SPEC = "policy.json"  # beside the base's files in a run
HEAD_FILE = "head.safetensors"
# Files of tokenizers and image processors in the published forms.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model", "tokenizer.model",
    "preprocessor_config.json", "processor_config.json", "generation_config.json",
)  # fmt: skip


def read(model: Model, folder: Path) -> Any:
    """Read a base's config: a vision-language model's, or the PolicySpec of a trained policy."""
    fields = read_json(folder / "config.json")
    if fields.get("model_type") == MODEL_TYPE:
        return parse(fields, str(folder / "config.json"))
    backbone_of(str(fields.get("model_type")), str(folder / "config.json"))
    return load_config(model, folder)


def carry(source: Path, folder: Path) -> None:
    """Copy tokenizer and image processor."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def tokenizer(folder: Path) -> Any:
    """The base model's tokenizer.

    Raises UserError where none loads.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: expected a tokenizer, found none that loads: "
            f"{str(error).splitlines()[0]}; complete the folder"
        ) from error


def image_processor(folder: Path, backbone: Mapping[str, Any]) -> ImageProcessor:
    """The image processor: resizes to the backbone's square by Pillow's bicubic filter.

    Mean and deviation are those of preprocessor_config.json, or else those the backbone was trained
    with.
    """
    kind = str(backbone["model_type"])
    adapter = backbone_of(kind, str(folder / "config.json"))
    size = adapter.image_size(AutoConfig.for_model(**backbone))
    mean, std = adapter.statistics()
    if (folder / FILE).is_file():
        fields = read_json(folder / FILE)
        mean, std = fields.get("image_mean", mean), fields.get("image_std", std)
    return ImageProcessor(
        {
            "image_resize_strategy": "resize-naive",
            "input_sizes": [[3, size, size]],
            "interpolations": ["bicubic"],
            "means": [mean],
            "stds": [std],
        },
        str(folder / FILE),
    )


def backbone_fields(base: Base[Any]) -> dict[str, Any]:
    """The backbone's config.json."""
    if isinstance(base.config, PolicySpec):
        return dict(base.config.backbone)
    return read_json(base.folder / "config.json")


def side(spec: PolicySpec) -> int:
    """Pixels of a side of the backbone's images."""
    adapter = backbone_of(str(spec.backbone["model_type"]), "config.json")
    return adapter.image_size(AutoConfig.for_model(**spec.backbone))


def spec_of(config: VlaConfig, base: Base[Any], sources: Sources) -> PolicySpec:
    """The head of a profile on this base, for this robot."""
    head, bounds, backbone = config.action_head, config.data.normalise, backbone_fields(base)
    adapter = backbone_of(str(backbone["model_type"]), base.model.name)
    return PolicySpec(
        backbone=backbone,
        kind=head.kind,
        head=HeadSize(
            features=adapter.features(AutoConfig.for_model(**backbone)),
            hidden=head.hidden,
            size=sources.action_dim,
            chunk=head.chunk,
            latent=head.latent,
            layers=head.layers,
            window=config.window,
            pool=head.pool,
            dropout=head.dropout,
            gripper=head.gripper,
        ),
        history=head.history,
        reads=head.reads,
        state_size=sources.proprio_dim if head.state else 0,
        bounds=None if bounds is None else (bounds.low, bounds.high),
        gripper_weight=head.gripper_weight,
        bins=head.bins,
        low=head.low,
        high=head.high,
        usable=usable_tokens(tokenizer(base.folder)) if head.kind == "discrete" else 0,
    )


def build(config: VlaConfig, base: Base[Any], spec: PolicySpec, report: Reporter) -> PolicyModel:
    """Build the base with the head, in the profile's dtypes, without an adapter.

    On the CPU. Random parts follow from `train.seed`. Raises UserError where the base is a policy
    with another head.
    """
    dtype = weights_dtype(config.train, config.adapter)
    if isinstance(base.config, PolicySpec):
        model = load_exported(base.folder, dtype, config.model.attention, base.config)
        _check_same(model.spec, spec, base.model.name)
        model.spec = spec
    else:
        adapter = backbone_of(str(base.config.model_type), base.model.name)
        chosen = chosen_attention(base.model, adapter, base.config)
        backbone = load_backbone(replace(base, model=chosen), config, lambda _: IMAGES, report)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)
            model = PolicyModel(spec, backbone)
        model.to(dtype)
    model.name_or_path = model.config.name_or_path = config.model.name
    freeze_unused(model)
    return model


def chosen_attention(model: Model, adapter: Backbone, config: Any) -> Model:
    """The profile's model, with the only kind of attention that fits in place of auto."""
    needed = adapter.attention(config)
    if model.attention != "auto" or needed is None:
        return model
    return model.model_copy(update={"attention": needed})


def _check_same(found: PolicySpec, wanted: PolicySpec, name: str) -> None:
    """Raise UserError where a trained head differs from the profile's."""
    settings = {
        "action_head.kind": (found.kind, wanted.kind),
        "action_head.history": (found.history, wanted.history),
        "action_head.reads": (found.reads, wanted.reads),
        "action_head.state": (bool(found.state_size), bool(wanted.state_size)),
        "action_head.chunk": (found.head.chunk, wanted.head.chunk),
        "action_head.hidden": (found.head.hidden, wanted.head.hidden),
        "action_head.layers": (found.head.layers, wanted.head.layers),
        "action_head.latent": (found.head.latent, wanted.head.latent),
        "action_head.gripper": (found.head.gripper, wanted.head.gripper),
        "numbers of an action": (found.head.size, wanted.head.size),
    }
    if wanted.kind == "gpt":
        settings["data.window"] = (found.window, wanted.window)
    for setting, (own, asked) in settings.items():
        if own != asked:
            raise UserError(
                f"{setting}: expected {own}, as the policy {name} was trained, found {asked}; set "
                "it so, or start from a vision-language model"
            )


def freeze_unused(model: PolicyModel) -> None:
    """Freeze the parameters that never get a gradient: DDP would wait for them."""
    out, table = model.get_output_embeddings(), model.get_input_embeddings()
    if not model.spec.is_discrete and out is not None and out.weight is not table.weight:
        out.requires_grad_(False)
    for name in model.adapter.unused(model.backbone):
        model.backbone.get_submodule(name).requires_grad_(False)


def empty(spec: PolicySpec, attn: str, dtype: torch.dtype = torch.float32) -> PolicyModel:
    """A policy whose weights are drawn as its library does; attn: auto is what fits the backbone,
    or sdpa."""
    config = AutoConfig.for_model(**spec.backbone)
    backbone = IMAGES.factory.from_config(
        config, attn_implementation=_attention(spec.backbone, config, attn)
    )
    return PolicyModel(spec, backbone).to(dtype)


def _attention(backbone: Mapping[str, Any], config: Any, wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return backbone_of(str(backbone["model_type"]), "config.json").attention(config) or "sdpa"


def random_policy(spec: PolicySpec, seed: int, attn: str = "auto") -> PolicyModel:
    """A policy with random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return empty(spec, attn)


def load_exported(
    folder: Path, dtype: torch.dtype, attn: str, spec: PolicySpec | None = None
) -> PolicyModel:
    """Load an exported policy in evaluation mode.

    Raises UserError for missing or unknown weights.
    """
    where = folder / "config.json"
    spec = parse(read_json(where), str(where)) if spec is None else spec
    model = empty(spec, attn, dtype)
    fill(model, read_weights(folder), str(folder))
    return model.eval()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder's safetensors files, of their own shapes.

    Raises UserError for a damaged file.
    """
    state: dict[str, Tensor] = {}
    for name in weight_files(folder):
        try:
            state |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{folder / name}: expected safetensors, found {error}; copy it again"
            ) from error
    return state


def fill(model: PolicyModel, stored: Mapping[str, Tensor], where: str) -> None:
    """Put weights of the model's shapes into a policy; raises as `check`."""
    check(model, stored, where)
    model.load_state_dict(dict(stored), strict=False)
    model.backbone.tie_weights()


def check(model: PolicyModel, stored: Mapping[str, Tensor], where: str) -> None:
    """Compare names and shapes of weights with the model's.

    Raises UserError for weights that are missing, unknown or of another shape.
    """
    own = model.state_dict()
    needed = own.keys() - model.all_tied_weights_keys.keys()
    for what, names in (("no", needed - stored.keys()), ("unknown", stored.keys() - own.keys())):
        if names:
            raise UserError(
                f"{where}: expected the weights of the config's model, found {what} "
                f"{sorted(names)[0]} ({len(names)} such); take the config of the same training"
            )
    for name, value in stored.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"{where}: expected {name} of shape {list(own[name].shape)}, found "
                f"{list(value.shape)}; take the config of the same training"
            )


def initial(run: Run, report: Reporter) -> PolicyModel:
    """The run's own model at step 0."""
    config: VlaConfig = run.config()
    skeleton = run.path / SKELETON
    folder = skeleton if config.model.random_init else locate(config.model, report, weights=True)
    spec = parse(read_json(skeleton / SPEC), str(skeleton / SPEC))
    return build(config, Base(config.model, folder, read(config.model, folder)), spec, report)


def trainable(model: PolicyModel, config: VlaConfig) -> nn.Module:
    """Prepare the model for training: whole, or the backbone under an adapter.

    The head beside an adapter is fp32 over any base. Raises UserError where the adapter to go on
    with, or the head beside it, is not the profile's.
    """
    adapter = config.adapter
    if adapter.method == "full":
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        if adapter.resume_from:
            spec = Path(adapter.resume_from) / SPEC
            if spec.is_file():  # of an export; a checkpoint has the head's shapes alone
                _check_same(parse(read_json(spec), str(spec)), model.spec, adapter.resume_from)
            wrapped: nn.Module = resumed(model, adapter, HEAD_FILE, model.is_head)
        else:
            wrapped = _adapted(model, config)
    for name, parameter in model.named_parameters():
        if model.is_head(name):
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return wrapped


def _adapted(model: PolicyModel, config: VlaConfig) -> nn.Module:
    from peft import get_peft_model

    own = lora_config(config.adapter)
    # For peft a causal model takes only text.
    own.task_type = None
    own.base_model_name_or_path = lasting_name(config.model.name)
    own.target_modules = set(_targets(model, config.adapter.targets))
    wrapped = get_peft_model(model, own, adapter_name=config.adapter.name)
    # Sorted: a set would be written in a different order by every process.
    own.target_modules = sorted(own.target_modules)
    return wrapped


def _targets(model: PolicyModel, wanted: tuple[str, ...]) -> list[str]:
    """Full names of the backbone's linear layers to adapt, without the output layer."""
    out = model.get_output_embeddings()
    unused = tuple(f"backbone.{name}." for name in model.adapter.unused(model.backbone))
    there = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not model.is_head(name) and module is not out
        and not f"{name}.".startswith(unused)
    ]  # fmt: skip
    if wanted == (ALL_LINEAR,):
        return there
    known = sorted({name.rpartition(".")[2] for name in there})
    missing = [name for name in wanted if name.rpartition(".")[2] not in known]
    if missing:
        raise UserError(
            f"adapter.targets: expected modules of the model, found {missing[0]!r}; it has "
            f"{', '.join(known)}, or take [{ALL_LINEAR}]"
        )
    return [name for name in there if name.endswith(tuple(f".{target}" for target in wanted))]


def under_adapter(
    folder: Path, facts: Mapping[str, Any], dtype: torch.dtype, attn: str, report: Reporter
) -> PolicyModel:
    """The base that an exported adapter names, with the head of its training.

    Raises UserError where tatara.json does not name the base.
    """
    if not facts.get("base"):
        raise UserError(
            f"{folder}: expected tatara.json to name the base; export the run once more"
        )
    base = Model(name=facts["base"], revision=facts.get("revision"))
    where = locate(base, report, weights=True)
    spec = parse(read_json(folder / SPEC), str(folder / SPEC))
    if isinstance(read(base, where), PolicySpec):
        model = load_exported(where, dtype, attn)
        model.spec = spec
    else:
        model = over_backbone(where, spec, dtype, attn)
    head = load_file(folder / HEAD_FILE)
    model.load_state_dict({name: value.to(dtype) for name, value in head.items()}, strict=False)
    return model.eval()


def over_backbone(folder: Path, spec: PolicySpec, dtype: torch.dtype, attn: str) -> PolicyModel:
    """A vision-language model's own weights under a head that is drawn anew; attn: as `empty`."""
    kind = _attention(spec.backbone, AutoConfig.for_model(**spec.backbone), attn)
    backbone: PreTrainedModel = IMAGES.factory.from_pretrained(
        folder, dtype=dtype, attn_implementation=kind, local_files_only=True, use_safetensors=True
    )
    return PolicyModel(spec, backbone).to(dtype)
