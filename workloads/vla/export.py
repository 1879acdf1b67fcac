"""From a run to a folder that OpenVLA's own tools load: weights, config, processor, statistics.

`export(run)` reads the newest whole checkpoint from disk, whatever strategy wrote it; no GPU and no
other rank is needed. What it writes takes its name only when it has been read back.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workloads.config.sections import Model
from workloads.engine.export.card import card_of, render
from workloads.engine.export.export import (
    FACTS,
    SKELETON,
    Exported,
    dtype_name,
    keep_base,
    silent,
    source_of,
)
from workloads.engine.pretrained import weights
from workloads.engine.pretrained.adapter import (
    ADAPTER_WEIGHTS,
    TOLERANCES,
    adapter_folder,
    load_adapter,
)
from workloads.engine.pretrained.base import Base, locate
from workloads.engine.pretrained.files import ADAPTER_CONFIG, Tell, compute_dtype, lasting_name
from workloads.errors import TataraError, UserError
from workloads.json_files import read_json
from workloads.run import Run
from workloads.vla.config import VlaConfig
from workloads.vla.data.prepare import Statistics
from workloads.vla.loading import image_processor, oft_spec, spec_of
from workloads.vla.model import load_pretrained, random_init
from workloads.vla.openvla import layout
from workloads.vla.openvla.config import OftSpec, OpenVLASpec
from workloads.vla.openvla.modeling import OpenVLA
from workloads.vla.openvla.tokenizer import COMPANIONS

STATISTICS = "dataset_statistics.json"


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """dataset_statistics.json as the field has it, whole or not at all."""
    partial = folder / f"{STATISTICS}.partial"
    partial.write_text(json.dumps(statistics, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / STATISTICS)


def keep_skeleton(base: Base[OpenVLASpec], model: OpenVLA, run: Run) -> None:
    """Keep the base's config, tokenizer, processor and card in the run."""
    folder = keep_base(base, run)
    for name in (*COMPANIONS, "config.json", "generation_config.json"):
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
    image_processor(base.folder).save_pretrained(folder)
    if model.oft is not None:
        fields = {name: model.oft.__dict__[name] for name in model.oft.__dataclass_fields__}
        (folder / layout.OFT_CONFIG).write_text(json.dumps(fields, indent=1) + "\n")


def export(
    run: Run,
    out: Path | None = None,
    *,
    checkpoint: Path | None = None,
    merge: bool | None = None,
    tell: Tell = silent,
) -> Exported:
    """Export a run's checkpoint to `out`, by default its newest whole one to the run's `final/`.

    merge: write an adapter's run as a whole model instead of the adapter alone; by default only
    where its base are random weights, which nobody else has. Weights are in the type that the run
    computed in. Raises UserError for a run without a whole checkpoint.
    """
    config: VlaConfig = run.config()
    source, step = source_of(run, checkpoint, tell)
    one = _Export(run, config, source, step, out or run.final, tell)
    if config.adapter.method == "full":
        done = one.whole()
    elif merge or (merge is None and config.model.random_init):
        done = one.merged()
    else:
        done = one.adapter()
    tell(done.line())
    return done


class _Export:
    """One export: what it reads, and where it writes."""

    def __init__(
        self, run: Run, config: VlaConfig, source: Path, step: int | None, out: Path, tell: Tell
    ) -> None:
        self.run, self.config, self.source, self.step = run, config, source, step
        self.out, self.tell = out, tell
        self.skeleton = run.path / SKELETON
        self.statistics: Statistics = read_json(run.path / STATISTICS)
        first = next(iter(self.statistics.values()))
        sizes = len(first["action"]["q01"]), len(first.get("proprio", {}).get("q01", ()))
        self.oft: OftSpec | None = oft_spec(config, *sizes)
        self.dtype = compute_dtype(config.train)
        self.name = dtype_name(self.dtype)

    def whole(self) -> Exported:
        """The weights of a run that trained all of them."""
        state = weights.read_state(self.source, self.dtype)
        head = self.source / layout.OFT_WEIGHTS
        if head.is_file():
            state |= _floats(_load(head), self.dtype)
        return self._write("model", state)

    def merged(self) -> Exported:
        """Base and adapter in one, after a comparison of what they predict."""
        base = self._base()
        base.load_state_dict(self._head_state(), strict=False)
        folder = self._peft_folder()
        wrapped = load_adapter(base, folder, self.config.adapter.name).eval()
        before = _probe(wrapped, base)
        merged = wrapped.merge_and_unload(safe_merge=True)
        after = _probe(merged, merged)
        scale, difference = float(before.abs().max()), float((after - before).abs().max())
        allowed = TOLERANCES[self.dtype] * scale
        if not difference <= allowed:
            raise UserError(
                f"merge: expected predictions within {allowed:.3g}, found a difference of "
                f"{difference:.3g}; export the adapter unmerged"
            )
        note = f"merged: predictions differ by at most {difference:.3g} of {scale:.3g}"
        self.tell(note)
        return self._write("merged", merged.state_dict(), (note,), difference)

    def adapter(self) -> Exported:
        """The adapter alone, with the OFT head beside it where there is one."""
        from safetensors.torch import save_file

        source = self._peft_folder()
        state = _load(source / ADAPTER_WEIGHTS)
        head = self._head_state()
        weights.check_finite({**state, **head})
        with weights.whole_folder(self.out, int(1.05 * weights.size_of(state))) as folder:
            save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            settings = read_json(source / ADAPTER_CONFIG)
            settings["base_model_name_or_path"] = lasting_name(self.config.model.name)
            settings["inference_mode"] = True
            _write_json(folder / ADAPTER_CONFIG, settings)
            if head:
                save_file(head, folder / layout.OFT_WEIGHTS, metadata={"format": "pt"})
                shutil.copyfile(self.skeleton / layout.OFT_CONFIG, folder / layout.OFT_CONFIG)
            self._accompany(folder, "adapter", ())
            found = weights.load_shapes(folder)
            if any(found.get(name) != tuple(value.shape) for name, value in state.items()):
                raise TataraError("export: the adapter that was written is not the one that is")
        return Exported(self.out, "adapter", self.step, self.name)

    def _write(
        self,
        kind: str,
        state: Mapping[str, torch.Tensor],
        notes: tuple[str, ...] = (),
        difference: float | None = None,
    ) -> Exported:
        weights.check_finite(state)
        expected = self._shapes()
        layout.check_names(expected, state, str(self.source))
        wrong = [name for name, value in state.items() if tuple(value.shape) != expected[name]]
        if wrong:
            raise UserError(f"{self.source}: expected {wrong[0]} of shape {expected[wrong[0]]}")
        cast = _floats(state, self.dtype)
        with weights.whole_folder(self.out, int(1.02 * weights.size_of(cast))) as folder:
            layout.write(folder, cast, spec_of(self.skeleton), self.statistics, self.oft)
            self._accompany(folder, kind, notes)
            if weights.load_shapes(folder) != expected:
                raise TataraError("export: the weights that were written are not those of the run")
        return Exported(self.out, kind, self.step, self.name, difference)

    def _accompany(self, folder: Path, kind: str, notes: tuple[str, ...]) -> None:
        """Everything but weights and config.json."""
        for name in COMPANIONS:
            if (self.skeleton / name).is_file():
                shutil.copyfile(self.skeleton / name, folder / name)
        image_processor(self.skeleton).save_pretrained(folder)
        write_statistics(folder, self.statistics)
        card = card_of(self.run, self.config, kind, self.name, self.step, self.skeleton)
        text = render(replace(card, task="robotics", notes=notes))
        (folder / "README.md").write_text(_with_own_use(text, kind), encoding="utf-8")
        _write_json(folder / FACTS, self._facts(kind, notes))

    def _facts(self, kind: str, notes: tuple[str, ...]) -> dict[str, Any]:
        """What our own tools need to use the policy as it was trained."""
        data = self.config.data
        manifest = read_json(self.run.path / "manifest.json")
        return {
            "kind": kind,
            "dtype": self.name,
            "step": self.step,
            "notes": list(notes),
            "base": self.config.model.name,
            "revision": self.config.model.revision,
            "adapter": self.config.adapter.name if kind == "adapter" else None,
            "crop_area": data.augmentation.served_area,
            "cameras": (manifest.get("data") or {}).get("cameras", list(data.cameras)),
            "action_head": self.config.action_head.model_dump(mode="json"),
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        from workloads.vla.openvla.checkpoint import empty

        model = empty(spec_of(self.skeleton), "sdpa", self.oft)
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}

    def _base(self) -> OpenVLA:
        """The base in the type that the run computed in, never quantised."""
        model = self.config.model
        if model.random_init:
            dtype, seed = self.dtype, self.config.train.seed
            return random_init(self.skeleton, seed, dtype, "sdpa", self.oft)
        folder = locate(Model(name=model.name, revision=model.revision), self.tell, weights=True)
        return load_pretrained(folder, self.dtype, "sdpa", oft=self.oft)

    def _head_state(self) -> dict[str, torch.Tensor]:
        """The trained OFT head in the type of the export; empty where there is none."""
        if self.oft is None:
            return {}
        return _floats(_load(self.source / layout.OFT_WEIGHTS), self.dtype)

    def _peft_folder(self) -> Path:
        return adapter_folder(self.source, self.config.adapter.name)


_USE = """## Use

The layout is OpenVLA's own, so that its tools load it; the actions of a picture, with Tatara:

```python
from workloads.vla.model import load_pretrained

model = load_pretrained(".", attn="sdpa")  # where this file lies
action = model.predict_action(input_ids, pixel_values)  # in the robot's units
```

`tatara.json` says which cameras and which centre crop the policy was trained with.
"""
_USE_ADAPTER = """## Use

An adapter for the base above: `tatara export RUN --merge` writes the whole model, which
OpenVLA's own tools load. `tatara.json` says which cameras and which centre crop it was trained
with; an OFT head lies beside it in `oft.safetensors`.
"""


def _with_own_use(card: str, kind: str) -> str:
    """A card whose section on use is that of a robot policy."""
    before, _, rest = card.partition("## Use\n")
    _, heading, after = rest.partition("\n## ")
    return before + (_USE_ADAPTER if kind == "adapter" else _USE) + heading + after


@torch.no_grad()
def _probe(model: Any, inner: OpenVLA) -> torch.Tensor:
    """What a model predicts on inputs that are the same every time, in fp32."""
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


def _load(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged ({error}); use an older checkpoint") from error


def _floats(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: weights.as_dtype(value, dtype) for name, value in state.items()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
