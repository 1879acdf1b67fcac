"""Exports a run to a folder that OpenVLA's tools load; built on the engine's exporter."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
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
from workloads.vla.model import load_pretrained, random_init
from workloads.vla.openvla import layout
from workloads.vla.openvla.checkpoint import empty
from workloads.vla.openvla.config import OftSpec, OpenVLASpec
from workloads.vla.openvla.loading import image_processor, oft_spec, spec_of
from workloads.vla.openvla.modeling import OpenVLA
from workloads.vla.openvla.tokenizer import COMPANIONS
from workloads.vla.statistics import STATISTICS, Statistics, write_statistics


def keep_skeleton(base: Base[OpenVLASpec], model: OpenVLA, run: Run) -> None:
    """Keep the base's config, tokenizer, processor and card in the run."""
    folder = keep_base(base, run)
    for name in (*COMPANIONS, "config.json", "generation_config.json"):
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
    image_processor(base.folder).save_pretrained(folder)
    if model.oft is not None:
        (folder / layout.OFT_CONFIG).write_text(json.dumps(asdict(model.oft), indent=1) + "\n")


class OpenVLAExporter(Exporter[VlaConfig]):
    """Writes OpenVLA's published layout, which its own tools load."""

    def read(self, model: Model, folder: Path) -> OpenVLASpec:
        return spec_of(folder)

    def trained(self, job: ExportJob[VlaConfig]) -> Whole:
        state = weights.read_state(job.source, job.dtype)
        return self._whole(job, {**state, **_head(job)})

    def merged(self, job: ExportJob[VlaConfig], adapter: Path) -> tuple[Whole, Merged]:
        """The base with the adapter merged into it, and the difference of predictions.

        Raises UserError where the predictions differ by more than rounding.
        """
        base = _base(job)
        base.load_state_dict(_head(job), strict=False)
        wrapped = load_adapter(base, adapter).eval()
        before = _probe(wrapped, base)
        merged = wrapped.merge_and_unload(safe_merge=True)
        comparison = compare_merged(before, _probe(merged, merged), job.dtype)
        return self._whole(job, merged.state_dict()), comparison

    def _whole(self, job: ExportJob[VlaConfig], state: Mapping[str, torch.Tensor]) -> Whole:
        expected = self._shapes(job)
        layout.check_names(expected, state, str(job.source))
        wrong = [name for name, value in state.items() if tuple(value.shape) != expected[name]]
        if wrong:
            raise UserError(f"{job.source}: expected {wrong[0]} of shape {expected[wrong[0]]}")
        cast = _floats(state, job.dtype)
        spec, statistics, oft = job.base.config, _statistics(job), _oft(job)
        return Whole(cast, lambda folder: layout.write(folder, cast, spec, statistics, oft))

    def _shapes(self, job: ExportJob[VlaConfig]) -> dict[str, tuple[int, ...]]:
        model = empty(job.base.config, "sdpa", _oft(job))
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}

    def accompany(self, job: ExportJob[VlaConfig], folder: Path) -> None:
        """Tokenizer, processor and statistics; beside an adapter, the OFT head of its training."""
        for name in COMPANIONS:
            if (job.base.folder / name).is_file():
                shutil.copyfile(job.base.folder / name, folder / name)
        image_processor(job.base.folder).save_pretrained(folder)
        write_statistics(folder, _statistics(job))
        if job.kind == "adapter" and (head := _head(job)):
            weights.check_finite(head)
            save_file(head, folder / layout.OFT_WEIGHTS, metadata={"format": "pt"})
            shutil.copyfile(job.base.folder / layout.OFT_CONFIG, folder / layout.OFT_CONFIG)

    def check(self, job: ExportJob[VlaConfig], folder: Path) -> None:
        if weights.load_shapes(folder) != self._shapes(job):
            raise TataraError("export: the weights that were written are not those of the run")

    def card(self, card: ModelCard, base: Base[Any]) -> ModelCard:
        return replace(card, task="robotics", use=_USE_ADAPTER if card.kind == "adapter" else _USE)

    def facts(self, job: ExportJob[VlaConfig]) -> dict[str, Any]:
        """Facts that our own tools need to use the policy as it was trained."""
        data = job.config.data
        manifest = read_json(job.run.path / "manifest.json")
        return {
            "base": job.config.model.name,
            "revision": job.config.model.revision,
            "adapter": job.config.adapter.name if job.kind == "adapter" else None,
            "family": "openvla",
            "crop_area": data.augmentation.served_area,
            "cameras": (manifest.get("data") or {}).get("cameras", list(data.cameras)),
            "action_head": job.config.action_head.model_dump(mode="json"),
        }


def _statistics(job: ExportJob[VlaConfig]) -> Statistics:
    found: Statistics = read_json(job.run.path / STATISTICS)
    return found


def _oft(job: ExportJob[VlaConfig]) -> OftSpec | None:
    first = next(iter(_statistics(job).values()))
    return oft_spec(
        job.config, len(first["action"]["q01"]), len(first.get("proprio", {}).get("q01", ()))
    )


def _base(job: ExportJob[VlaConfig]) -> OpenVLA:
    """The base in the type that the run computed in, never quantised."""
    model, oft = job.config.model, _oft(job)
    if model.random_init:
        return random_init(job.base.folder, job.config.train.seed, job.dtype, "sdpa", oft)
    return load_pretrained(locate(model, job.report, weights=True), job.dtype, "sdpa", oft=oft)


def _head(job: ExportJob[VlaConfig]) -> dict[str, torch.Tensor]:
    """The trained OFT head in the type of the export; empty where there is none."""
    file = job.source / layout.OFT_WEIGHTS
    if _oft(job) is None or not (file.is_file() or job.kind != "model"):
        return {}
    try:
        return _floats(load_file(file), job.dtype)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); use an older checkpoint") from error


_USE = """The layout is OpenVLA's own, so that its tools load it; the actions of an image, with
Tatara:

```python
from workloads.vla.model import load_pretrained

model = load_pretrained(".", attn="sdpa")  # where this file lies
action = model.predict_action(input_ids, pixel_values)  # in the robot's units
```

`tatara.json` says which cameras and which centre crop the policy was trained with."""
_USE_ADAPTER = """An adapter for the base above: `tatara export RUN --merge` writes the whole model,
which OpenVLA's own tools load. `tatara.json` says which cameras and which centre crop it was
trained with; an OFT head lies beside it in `oft.safetensors`."""


@torch.no_grad()
def _probe(model: Any, inner: OpenVLA) -> torch.Tensor:
    """Predictions of a model on fixed inputs, in fp32."""
    generator = torch.Generator().manual_seed(0)
    tower = inner.spec.towers[0]
    slots = inner.oft.slots if inner.oft is not None else 8
    shape = (2, inner.spec.channels, tower.image_size, tower.image_size)
    pixels = torch.randn(shape, generator=generator)
    size = inner.action_tokenizer.first_id
    ids = torch.randint(3, size, (2, 24 + slots), generator=generator)
    ids[:, 24:] = size
    labels = torch.full_like(ids, -100)
    labels[:, 24:] = ids[:, 24:]
    inputs: dict[str, Any] = {"pixel_values": pixels, "input_ids": ids, "labels": labels}
    if inner.oft is not None and inner.oft.proprio_dim is not None:
        inputs["proprio"] = torch.zeros(2, inner.oft.proprio_dim)
    output = model(**inputs)
    regressed = getattr(output, "predicted_actions", None)
    found: torch.Tensor = output.logits if regressed is None else regressed
    return found.float()


def _floats(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: weights.as_dtype(value, dtype) for name, value in state.items()}
