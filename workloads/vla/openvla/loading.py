"""Loads the policy of a profile for training: base, head and adapter."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from workloads.engine.pretrained.adapter import ALL_LINEAR, lora_config
from workloads.engine.pretrained.files import (
    choose_attention,
    compute_dtype,
    has_flash_kernel,
    lasting_name,
    weights_dtype,
)
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.vla.config import VlaConfig
from workloads.vla.model import load_pretrained, random_init
from workloads.vla.openvla import layout
from workloads.vla.openvla.checkpoint import saved_oft
from workloads.vla.openvla.config import OftSpec, OpenVLASpec, parse
from workloads.vla.openvla.lora import linear_suffixes, used_linears
from workloads.vla.openvla.modeling import OpenVLA
from workloads.vla.openvla.quantise import Quantisation
from workloads.vla.processing import FILE, ImageProcessor, preprocessor_fields
from workloads.vla.resuming import resumed
from workloads.vla.statistics import Statistics

Reporter = Callable[[str], None]


def spec_of(folder: Path) -> OpenVLASpec:
    """Read config.json in a base's folder."""
    return parse(read_json(folder / "config.json"), str(folder / "config.json"))


def image_processor(folder: Path) -> ImageProcessor:
    """The base's own image processor, or that of its towers if its folder has none."""
    if (folder / FILE).is_file():
        return ImageProcessor.from_pretrained(folder)
    return ImageProcessor(preprocessor_fields(spec_of(folder)))


def oft_spec(config: VlaConfig, action_dim: int, proprio_dim: int) -> OftSpec | None:
    """The OFT head of a profile for this robot; None for action tokens."""
    head = config.action_head
    if head.kind != "oft":
        return None
    return OftSpec(
        action_dim,
        head.chunk,
        proprio_dim=proprio_dim if head.proprio else None,
        head=head.decode,
    )


def load_model(
    config: VlaConfig, folder: Path, oft: OftSpec | None, statistics: Statistics, report: Reporter
) -> OpenVLA:
    """Load the base with the head, in the profile's dtypes, without an adapter.

    On the CPU, except for a quantised base. Random parts follow from `train.seed`. Raises UserError
    for QLoRA of random weights.
    """
    dtype = weights_dtype(config.train, config.adapter)
    if config.model.random_init and config.adapter.method == "qlora":
        raise UserError(
            "adapter.method=qlora: expected pretrained weights to quantise, found "
            "model.random_init=true; use adapter.method=lora"
        )
    attention = choose_attention(
        config.model.attention,
        OpenVLA,
        compute_dtype(config.train),
        torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        has_flash_kernel,
    )
    report(attention.line())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        if config.model.random_init:
            model = random_init(folder, config.train.seed, dtype, attention.name, oft)
        else:
            model = _pretrained(config, folder, dtype, attention.name, oft)
    model.name_or_path = model.config.name_or_path = config.model.name
    model.norm_stats = statistics
    model.label_logits_only = True
    return model


def _pretrained(
    config: VlaConfig, folder: Path, dtype: torch.dtype, attention: str, oft: OftSpec | None
) -> OpenVLA:
    adapter = config.adapter
    quantisation = None
    device = torch.device("cpu")
    if adapter.method == "qlora":
        quantisation = Quantisation(
            adapter.quantisation, adapter.double_quantisation, compute_dtype(config.train)
        )
        if torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
    return load_pretrained(folder, dtype, attention, device, oft, quantisation)


def trainable(model: OpenVLA, config: VlaConfig) -> nn.Module:
    """Prepare the model for training: all of it, or under an adapter with the OFT head beside it.

    Modules that the forward pass never uses stay frozen. Adapter and head are fp32 whatever the
    base is.
    """
    if config.adapter.method == "full":
        model.freeze_unused()
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        wrapped = _adapted(model, config)
    for head in model.heads():
        head.float().requires_grad_(True)
    return wrapped


def _adapted(model: OpenVLA, config: VlaConfig) -> nn.Module:
    from peft import get_peft_model

    adapter = config.adapter
    if adapter.resume_from:
        saved = saved_oft(Path(adapter.resume_from))  # of an export; a checkpoint has no such file
        if saved is not None and saved != model.oft:
            raise UserError(
                f"adapter.resume_from: expected an adapter beside {model.oft or 'no OFT head'}, "
                f"found {saved}; set action_head as that training had it"
            )
        return resumed(model, adapter, layout.OFT_WEIGHTS, layout.is_head)
    own = lora_config(adapter)
    # For peft a causal model takes only text.
    own.task_type = None
    own.base_model_name_or_path = lasting_name(config.model.name)
    own.target_modules = set(_targets(model, config))
    if adapter.targets == (ALL_LINEAR,):
        # What belongs to the name in OpenVLA's own recipe.
        own.init_lora_weights = "gaussian"
    wrapped = get_peft_model(model, own, adapter_name=adapter.name)
    # Sorted: a set would be written in a different order by every process.
    own.target_modules = sorted(own.target_modules)
    return wrapped


def _targets(model: OpenVLA, config: VlaConfig) -> list[str]:
    """Modules to adapt. `all-linear` leaves out those whose adapters would never get gradients."""
    wanted = config.adapter.targets
    if wanted == (ALL_LINEAR,):
        head = "language_model.lm_head"
        return [name for name in used_linears(model) if not (config.regresses and name == head)]
    known = linear_suffixes(model)
    missing = [name for name in wanted if name.rpartition(".")[2] not in known]
    if missing:
        raise UserError(
            f"adapter.targets: expected modules of the model, found {missing[0]!r}; it has "
            f"{', '.join(known)}, or take [{ALL_LINEAR}]"
        )
    return list(wanted)


def plain(model: nn.Module) -> OpenVLA:
    """The OpenVLA module inside of an adapter's wrapper."""
    from peft import PeftModel

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, OpenVLA)
    return inner
