"""LoRA and QLoRA by peft: several named adapters on one base, saved, resumed and merged.

The layout on disk is peft's: an adapter named `default` lies in the folder itself, every other one
in a folder of its name inside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workloads.config.sections import Adapter
from workloads.engine.pretrained.files import ADAPTER_CONFIG, lasting_name
from workloads.errors import UserError
from workloads.json_files import read_json

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
# The largest logit difference allowed between a base with its adapter and the two merged, as a
# share of the largest logit: what rounding the merged weights to this type explains, and no more.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_PROBE_SHAPE = (2, 48)


def add_adapter(model: nn.Module, adapter: Adapter) -> "PeftModel":
    """The model with a new trainable adapter of that name, the active one; the base is frozen.

    A model that has adapters already keeps them side by side. With `resume_from` the adapter
    starts from a saved one, which must have the same shape. Its weights are fp32 whatever the base
    is held in. Raises UserError for targets that the model does not have.
    """
    from peft import PeftModel, get_peft_model

    wrapped = model if isinstance(model, PeftModel) else None
    if wrapped is not None and adapter.name in wrapped.peft_config:
        raise UserError(
            f"adapter.name: expected a new name, found {adapter.name!r}, which this model has "
            "already; choose another"
        )
    check_targets(model, adapter)
    saved = adapter_folder(Path(adapter.resume_from), adapter.name) if adapter.resume_from else None
    config = lora_config(adapter)
    config.ensure_weight_tying = _trains_tied_table(model, adapter)
    if saved is not None:
        check_same_config(saved, adapter, config)
    if wrapped is None:
        wrapped = get_peft_model(model, config, adapter_name=adapter.name)
    else:
        wrapped.add_adapter(adapter.name, config)
    # peft adds the tied module's full name to the list, which says nothing new in a file.
    config.modules_to_save = list(adapter.modules_to_save) or None
    if saved is not None:
        _take_weights(wrapped, saved, adapter.name)
    wrapped.set_adapter(adapter.name)
    return wrapped


def _trains_tied_table(model: nn.Module, adapter: Adapter) -> bool:
    """Whether tied embeddings, which are also the head, are trained whole and must stay tied.

    Raises UserError where peft (0.21) would untie them: it ties only modules of some names.
    """
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if table is None or head is None or table.weight is not head.weight:
        return False
    names = [name for name, module in model.named_modules() if module is table or module is head]
    saved = [
        name for name in names if any(is_called(name, item) for item in adapter.modules_to_save)
    ]
    parted = [name for name in saved if name.rpartition(".")[2] not in EMBEDDING_LAYER_NAMES]
    if parted:
        raise UserError(
            f"adapter.modules_to_save: expected modules that peft can train whole, found "
            f"{parted[0]}, whose weights are also the model's head; set adapter.method=full"
        )
    return bool(saved)


def grow_embeddings(model: nn.Module, rows: int) -> None:
    """Extend embeddings to so many tokens; new rows are the mean of the others.

    The mean's logit is the mean of all logits: a row that nothing trains is never the likeliest.
    """
    before = model.get_input_embeddings().num_embeddings
    if rows <= before:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for table in [model.get_input_embeddings().weight, *(head.parameters() if head else ())]:
            table[before:] = table[:before].float().mean(0).to(table.dtype)


def lora_config(adapter: Adapter) -> "LoraConfig":
    """Our section as peft's config; no other place names its fields."""
    from peft import LoraConfig

    everywhere = adapter.targets == (ALL_LINEAR,)
    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=ALL_LINEAR if everywhere else list(adapter.targets),
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        modules_to_save=list(adapter.modules_to_save) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def check_targets(model: nn.Module, adapter: Adapter) -> None:
    """Raise UserError for a target that the model lacks, and for its head.

    peft itself accepts a list of which one target exists, and the loss reads the head's weights
    without an adapter. The model may lie on the meta device.
    """
    names = set(_linear_names(model))
    head = _head_name(model)
    known = sorted({name.rpartition(".")[2] for name in names - {head}})
    all_names = {name for name, _ in model.named_modules()}
    for module in adapter.modules_to_save:
        if not any(is_called(name, module) for name in all_names):
            raise UserError(
                f"adapter.modules_to_save: expected modules of the model, found {module!r}; it has "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in all_names} - {''}))}"
            )
    if adapter.targets == (ALL_LINEAR,):
        return
    for target in adapter.targets:
        if head is not None and is_called(head, target):
            raise UserError(
                f"adapter.targets: expected modules other than the model's head, found {target!r}; "
                f"take it out, or train it whole by adapter.modules_to_save=[{target}]"
            )
        if not any(is_called(name, target) for name in names):
            raise UserError(
                f"adapter.targets: expected modules of the model, found {target!r}; it has "
                f"{', '.join(known)}, or take [{ALL_LINEAR}]"
            )


def is_called(name: str, target: str) -> bool:
    """Whether a target matches a module's full name, as peft matches it."""
    return name == target or name.endswith(f".{target}")


def _head_name(model: nn.Module) -> str | None:
    """Name of the output layer, if the model has one of its own."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return next((name for name, module in model.named_modules() if module is head), None)


def _linear_names(model: nn.Module) -> Iterator[str]:
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and ".lora_" not in name:
            # Where another adapter wraps a layer, the layer itself is its `base_layer`.
            yield name.removesuffix(".base_layer")


def adapter_folder(folder: Path, name: str) -> Path:
    """Folder of the adapter of that name; raises UserError that lists the existing ones."""
    for place in (folder / name, folder):
        if (place / ADAPTER_CONFIG).is_file() and (place / ADAPTER_WEIGHTS).is_file():
            return place
    known = ", ".join(saved_adapters(folder)) or "none"
    raise UserError(
        f"{folder}: expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} of adapter {name!r}, found "
        f"adapters: {known}; name the folder of a saved one"
    )


def check_same_base(saved: Path, base: str) -> None:
    """Raise UserError for an adapter that was trained over another base, by name."""
    own = str(read_json(saved / ADAPTER_CONFIG).get("base_model_name_or_path"))
    if lasting_name(own) != lasting_name(base):
        raise UserError(
            f"{saved}: expected an adapter of {base}, found one of {own}; correct "
            f"base_model_name_or_path in {ADAPTER_CONFIG} if the two are the same"
        )


def saved_adapters(folder: Path) -> dict[str, Path]:
    """The adapters in a folder by name."""
    found = {}
    if (folder / ADAPTER_CONFIG).is_file():
        found["default"] = folder
    for inner in sorted(folder.glob(f"*/{ADAPTER_CONFIG}")):
        found[inner.parent.name] = inner.parent
    return found


# Fields of adapter_config.json that do not change what the weights mean, or that a profile sets
# again. fan_in_fan_out: peft corrects it by the kind of layer.
_MAY_DIFFER = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}
# Initialisations that leave the base unchanged; the others subtract from its weights.
_PLAIN_BEGINNINGS = (True, False, "gaussian")
_OUR_NAMES = {"lora_alpha": "alpha", "target_modules": "targets"}


def check_same_config(
    saved: Path, adapter: Adapter, config: "LoraConfig", by_last_name: bool = False
) -> None:
    """Raise UserError where a field of the saved adapter's config is not as the profile makes it.

    A field that a profile cannot set is refused by name: without it the adapter would compute
    something else than in peft. by_last_name: targets may be written as names of whole modules.
    """
    ours = config.to_dict()
    # A field that an older peft did not write had its default.
    own = type(config)().to_dict() | read_json(saved / ADAPTER_CONFIG)
    for name in own:
        there, here = _comparable(own[name]), _comparable(ours.get(name))
        if name == "target_modules" and by_last_name:
            there, here = _last_names(there), _last_names(here)
        if name in _MAY_DIFFER or there == here:
            continue
        if name == "init_lora_weights" and own[name] in _PLAIN_BEGINNINGS:
            continue
        # peft writes `all-linear` as the list of modules.
        if name == "target_modules" and ALL_LINEAR in (there, here) and not _is_pattern(own[name]):
            continue
        setting = _OUR_NAMES.get(name, name)
        if setting in Adapter.model_fields and not _is_pattern(own[name]):
            raise UserError(
                f"adapter.{setting}: expected {there}, as the adapter in {saved} has, found "
                f"{here}; set it to the same, or leave out adapter.resume_from"
            )
        raise UserError(
            f"{saved / ADAPTER_CONFIG}: expected {name} {here}, found {own[name]!r}, which "
            "training cannot go on with; merge the adapter into its base and train a new one on it"
        )


def _comparable(value: Any) -> Any:
    """Value with lists sorted; peft writes an empty object, an empty list or null for the same."""
    if isinstance(value, set | tuple | list):
        return sorted(value) or None
    return None if value == {} else getattr(value, "value", value)


def _last_names(targets: Any) -> Any:
    if not isinstance(targets, list):
        return targets
    return sorted({name.rpartition(".")[2] for name in targets})


def _is_pattern(targets: Any) -> bool:
    return isinstance(targets, str) and targets != ALL_LINEAR


def _take_weights(model: "PeftModel", saved: Path, name: str) -> None:
    from peft import set_peft_model_state_dict

    try:
        found = set_peft_model_state_dict(model, _read_weights(saved), adapter_name=name)
    except RuntimeError as error:
        raise UserError(
            f"{saved}: expected an adapter of this model, found other shapes: "
            f"{str(error).strip().splitlines()[-1].strip()}"
        ) from error
    if found.unexpected_keys:
        raise UserError(
            f"{saved}: expected an adapter of this model, found weights for "
            f"{found.unexpected_keys[0]}, which it does not have"
        )
    marks = ("lora_", "modules_to_save")
    absent = [
        key
        for key in found.missing_keys
        if any(mark in key for mark in marks) and f".{name}" in key
    ]
    if absent:
        raise UserError(f"{saved}: expected weights for {absent[0]}, found none; is it whole?")


def load_adapter(
    model: nn.Module, folder: Path, name: str = "default", trainable: bool = False
) -> "PeftModel":
    """The model with a saved adapter, active, of any saved shape.

    Raises UserError for an adapter of another model, or with weights missing.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    saved = adapter_folder(folder, name)
    if not isinstance(model, PeftModel):
        _make_room(model, saved)
    config = PeftConfig.from_pretrained(str(saved))
    config.inference_mode = not trainable
    # PEFT 0.21 warns where the model is not called as it was saved ("renamed to 'None'"), and then
    # writes the model's name itself: the base was located by that name before.
    config.base_model_name_or_path = None
    try:
        if isinstance(model, PeftModel):
            wrapped = model
            wrapped.add_adapter(name, config)
        else:
            wrapped = get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise UserError(
            f"{saved}: expected an adapter of this model, found one that does not fit: "
            f"{str(error).splitlines()[0]}"
        ) from error
    _take_weights(wrapped, saved, name)
    wrapped.set_adapter(name, inference_mode=not trainable)
    return wrapped


@contextmanager
def adapters_alone(model: Any) -> Iterator[None]:
    """Make a model's `save_pretrained`, which libraries call, write adapters without the base.

    peft (0.21) writes embeddings that have grown a second time, by names that it does not read.
    """
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    try:
        yield
    finally:
        del model.save_pretrained


def _read_weights(saved: Path) -> dict[str, torch.Tensor]:
    from peft import load_peft_weights
    from safetensors import SafetensorError

    try:
        return load_peft_weights(str(saved), device="cpu")
    except SafetensorError as error:
        raise UserError(f"{saved / ADAPTER_WEIGHTS}: damaged ({error}); copy it again") from error


def _make_room(model: nn.Module, saved: Path) -> None:
    """Extend a base's embeddings to the vocabulary of a saved adapter."""
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    tables = tuple(f".{name}.weight" for name in EMBEDDING_LAYER_NAMES)
    rows = [len(value) for name, value in _read_weights(saved).items() if name.endswith(tables)]
    if rows:
        grow_embeddings(model, max(rows))


def save_adapters(model: "PeftModel", folder: Path) -> None:
    """Write every adapter of a model, as safetensors, without the base."""
    model.save_pretrained(str(folder), save_embedding_layers=False)


@dataclass(frozen=True)
class MergeReport:
    """Difference between merged weights and the base with its adapter, in logits on a fixed input.

    difference: the largest absolute one; scale: the largest absolute logit; agreement: the share
    of positions where both name the same next token; quantised_difference and
    quantised_agreement: the same against the quantised base that the adapter was trained on.
    """

    difference: float
    scale: float
    tolerance: float
    agreement: float
    quantised_difference: float | None = None
    quantised_agreement: float | None = None

    def line(self) -> str:
        text = (
            f"merged: logits differ by at most {self.difference:.3g} of {self.scale:.3g} "
            f"(allowed {self.tolerance * self.scale:.3g}), same next token at "
            f"{self.agreement:.1%} of positions"
        )
        if self.quantised_difference is not None:
            text += (
                f"; from the quantised base it was trained on by {self.quantised_difference:.3g}, "
                f"same next token at {self.quantised_agreement:.1%}"
            )
        return text

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def merge_into(
    base: nn.Module,
    folder: Path,
    name: str = "default",
    quantised: nn.Module | None = None,
    tolerance: float | None = None,
) -> tuple[nn.Module, MergeReport]:
    """Merge a saved adapter into a base held in full precision, and compare the logits.

    quantised: the base as the adapter was trained over it; the difference to it is reported, not
    judged, because dequantised weights are other weights. tolerance: allowed share of the largest
    logit, by default what the base's type explains. Raises UserError past it.
    """
    dtype = next(base.parameters()).dtype
    if dtype not in TOLERANCES or _is_quantised(base):
        raise UserError(
            "merge: expected a base in fp32, bf16 or fp16, found a quantised one; load it without "
            "quantisation"
        )
    allowed = TOLERANCES[dtype] if tolerance is None else tolerance
    wrapped = load_adapter(base, folder, name).eval()
    inputs = _probe_inputs(base)
    before = _logits(wrapped, inputs)
    try:
        merged = wrapped.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(
            f"{folder}: merged weights would not be finite ({error}); keep the adapter unmerged"
        ) from error
    after = _logits(merged, inputs)
    scale = float(before.abs().max())
    difference = float((after - before).abs().max())
    report = MergeReport(difference, scale, allowed, _agreement(before, after))
    if not difference <= allowed * scale:
        raise UserError(
            f"merge: expected logits within {allowed * scale:.3g}, found a difference of "
            f"{difference:.3g}; merge into the base in fp32, or keep the adapter unmerged"
        )
    if quantised is not None:
        report = _against_quantised(report, quantised, folder, name, after, inputs)
    return merged, report


def _is_quantised(model: nn.Module) -> bool:
    return any(
        type(module).__name__ in ("Linear4bit", "Linear8bitLt") for module in model.modules()
    )


def _against_quantised(
    report: MergeReport,
    quantised: nn.Module,
    folder: Path,
    name: str,
    after: torch.Tensor,
    inputs: torch.Tensor,
) -> MergeReport:
    trained = _logits(load_adapter(quantised, folder, name).eval(), inputs)
    return MergeReport(
        report.difference,
        report.scale,
        report.tolerance,
        report.agreement,
        quantised_difference=float((after - trained).abs().max()),
        quantised_agreement=_agreement(trained, after),
    )


def _probe_inputs(model: nn.Module) -> torch.Tensor:
    """Fixed token ids spread over the vocabulary, (rows, positions)."""
    size = model.get_input_embeddings().num_embeddings
    return torch.randint(size, _PROBE_SHAPE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Logits in fp32 on the host, (rows, positions, vocabulary)."""
    device = next(model.parameters()).device
    result: torch.Tensor = model(input_ids=inputs.to(device), use_cache=False).logits
    return result.float().cpu()


def _agreement(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.argmax(-1) == second.argmax(-1)).float().mean())
