"""Exports a policy with a head to a model folder; built on the engine's exporter."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from workloads.config.sections import Model
from workloads.engine.export.card import ModelCard
from workloads.engine.export.export import keep_base
from workloads.engine.export.exporter import Exporter, ExportJob, Merged, Whole
from workloads.engine.pretrained import weights
from workloads.engine.pretrained.adapter import load_adapter
from workloads.engine.pretrained.base import Base, locate
from workloads.errors import TataraError, UserError
from workloads.json_files import read_json
from workloads.run import Run
from workloads.vla.config import VlaConfig
from workloads.vla.merging import compare_merged
from workloads.vla.robovlms import loading
from workloads.vla.robovlms.modeling import PolicyModel, write
from workloads.vla.robovlms.spec import MODEL_TYPE, PolicySpec, parse
from workloads.vla.statistics import STATISTICS, write_statistics


def keep_skeleton(base: Base[Any], model: PolicyModel, run: Run) -> None:
    """Keep the base's config, tokenizer, processor and card in the run, and the head's shape."""
    folder = keep_base(base, run)
    loading.carry(base.folder, folder)
    shutil.copyfile(base.folder / "config.json", folder / "config.json")
    _write_spec(folder, model.spec)


class PolicyExporter(Exporter[VlaConfig]):
    """Writes RoboVLMs' names below `model.`, and one config.json for backbone and head."""

    def read(self, model: Model, folder: Path) -> Any:
        return loading.read(model, folder)

    def trained(self, job: ExportJob[VlaConfig]) -> Whole:
        return self._whole(job, weights.read_state(job.source, job.dtype))

    def merged(self, job: ExportJob[VlaConfig], adapter: Path) -> tuple[Whole, Merged]:
        """The policy with the adapter merged into it, and the difference of predictions.

        Raises UserError where the predictions differ by more than rounding.
        """
        base = _base(job)
        base.load_state_dict(_head(job), strict=False)
        base.eval()
        wrapped: Any = load_adapter(base, adapter).eval()
        before = _probe(wrapped, base)
        merged: PolicyModel = wrapped.merge_and_unload(safe_merge=True)
        comparison = compare_merged(before, _probe(merged, merged), job.dtype)
        return self._whole(job, merged.state_dict()), comparison

    def _whole(self, job: ExportJob[VlaConfig], state: Mapping[str, torch.Tensor]) -> Whole:
        spec = _spec(job)
        with torch.device("meta"):
            shell = loading.empty(spec, "auto")
        tied = shell.all_tied_weights_keys
        own = {
            name: weights.as_dtype(value, job.dtype)
            for name, value in state.items()
            if name not in tied
        }
        loading.check(shell, own, str(job.source))
        return Whole(own, lambda folder: write(folder, own, spec, tied))

    def accompany(self, job: ExportJob[VlaConfig], folder: Path) -> None:
        """Tokenizer, processor and statistics; beside an adapter, the head of its training."""
        loading.carry(job.base.folder, folder)
        write_statistics(folder, read_json(job.run.path / STATISTICS))
        if job.kind == "adapter":
            save_file(_head(job), folder / loading.HEAD_FILE, metadata={"format": "pt"})
            _write_spec(folder, _spec(job))

    def check(self, job: ExportJob[VlaConfig], folder: Path) -> None:
        try:
            loading.load_exported(folder, job.dtype, "auto")
        except UserError as error:
            raise TataraError(f"export: what was written does not load: {error}") from error

    def card(self, card: ModelCard, base: Base[Any]) -> ModelCard:
        use = _USE_ADAPTER if card.kind == "adapter" else _USE
        return replace(card, task="robotics", use=use)

    def facts(self, job: ExportJob[VlaConfig]) -> dict[str, Any]:
        """Facts that our own tools need to use the policy as it was trained."""
        data = job.config.data
        manifest = read_json(job.run.path / "manifest.json")
        return {
            "base": job.config.model.name,
            "revision": job.config.model.revision,
            "adapter": job.config.adapter.name if job.kind == "adapter" else None,
            "family": MODEL_TYPE,
            "crop_area": data.augmentation.served_area,
            "cameras": (manifest.get("data") or {}).get("cameras", list(data.cameras)),
            "action_head": job.config.action_head.model_dump(mode="json"),
        }


def _write_spec(folder: Path, spec: PolicySpec) -> None:
    text = json.dumps(spec.as_fields(), indent=1) + "\n"
    (folder / loading.SPEC).write_text(text, encoding="utf-8")


def _spec(job: ExportJob[VlaConfig]) -> PolicySpec:
    file = job.base.folder / loading.SPEC
    return parse(read_json(file), str(file))


def _base(job: ExportJob[VlaConfig]) -> PolicyModel:
    """The base in the type that the run computed in."""
    config, spec = job.config, _spec(job)
    if config.model.random_init:
        return loading.initial(job.run, job.report).to(job.dtype)
    folder = locate(config.model, job.report, weights=True)
    if isinstance(loading.read(config.model, folder), PolicySpec):
        model = loading.load_exported(folder, job.dtype, "auto")
        model.spec = spec
        return model
    return loading.over_backbone(folder, spec, job.dtype, "auto")


def _head(job: ExportJob[VlaConfig]) -> dict[str, torch.Tensor]:
    """The trained head beside an adapter, in the type of the export."""
    file = job.source / loading.HEAD_FILE
    if not file.is_file():
        return {}  # discrete actions have none
    try:
        return {name: weights.as_dtype(value, job.dtype) for name, value in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); use an older checkpoint") from error


_USE = """Actions of a camera's images, with Tatara:

```python
from workloads.vla.policy import Observation, Policy

policy = Policy.from_pretrained(".")  # where this file lies
memory = policy.new_memory()  # one an episode
actions = policy.act([Observation(images, "push the block")], memories=[memory])
```

`tatara serve` answers a robot's program; `tatara.json` says which cameras the policy was trained
with."""
_USE_ADAPTER = """An adapter for the base above, with its head in `head.safetensors`: `tatara serve`
takes the folder as it is, and `tatara export RUN --merge` writes the whole policy."""


@torch.no_grad()
def _probe(model: Any, inner: PolicyModel) -> torch.Tensor:
    """Predictions of a model on fixed inputs, in fp32."""
    generator = torch.Generator().manual_seed(0)
    spec = inner.spec
    size = loading.side(spec)
    steps = min(2, spec.window)
    inputs: dict[str, Any] = {
        "pixel_values": torch.randn((2, steps, 1, 3, size, size), generator=generator).to(
            inner.dtype
        ),
        "input_ids": torch.randint(5, 60, (2, steps, 12), generator=generator),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if spec.state_size:
        inputs["states"] = torch.zeros(2, steps, spec.state_size)
    if spec.is_discrete:
        inputs["labels"] = inputs["input_ids"]
    output = model(**inputs)
    found: torch.Tensor = output.logits if output.arm is None else output.arm
    return found.float()
