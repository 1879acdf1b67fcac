"""The parts of an export: which checkpoint, which base, adapters, and the facts beside a model."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workloads.config.sections import Adapter, Model, Profile
from workloads.engine.export.card import ModelCard, write_card
from workloads.engine.hub.upload import FACTS, card_digest
from workloads.engine.pretrained import weights
from workloads.engine.pretrained.adapter import ADAPTER_WEIGHTS, adapter_folder, lora_config
from workloads.engine.pretrained.base import Base, candidates, find_base, load_config
from workloads.engine.pretrained.files import Reporter, lasting_name
from workloads.errors import TataraError, UserError
from workloads.json_files import read_json
from workloads.run import Run
from workloads.run.best import best_step
from workloads.run.integrity import SEAL, sealed, step_of, verify_checkpoint, write_atomically

SHARD_SIZE = "4GB"
BEST = Path("best")  # in place of a checkpoint's name
# A run keeps the files of its base except weights here, so that export needs neither hub nor
# cache, with the name of that model.
SKELETON = "model"
SOURCE = "source.json"
_SAVED = re.compile(
    r"\.lora_(embedding_)?[AB](\.weight)?$|\.lora_magnitude_vector\.weight$|\.modules_to_save\."
)


@dataclass(frozen=True)
class Exported:
    """A written export: `kind` is model, adapter or merged; `difference` of merged logits."""

    folder: Path
    kind: str
    step: int | None
    dtype: str
    difference: float | None = None

    def line(self) -> str:
        at = f" of step {self.step}" if self.step is not None else ""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return f"exported {self.kind}{at} to {self.folder}/ ({self.dtype}, {size / 2**20:,.0f} MiB)"


def silent(text: str) -> None:
    """Drop a message."""


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def source_of(run: Run, checkpoint: Path | None, report: Reporter) -> tuple[Path, int | None]:
    """The named checkpoint, or the newest whole one, and its step if its name has one.

    A name such as checkpoint-8 means the run's own, and `best` the one with the best held-out
    score. One without a seal is taken as it is. Raises UserError for a damaged one, or for none.
    """
    if checkpoint == BEST:
        checkpoint = best_checkpoint(run)
        if checkpoint is None:
            raise UserError(
                f"{run.path}: expected a checkpoint that was evaluated, found none; set "
                "evaluation.every_steps and checkpoints.every_steps, or name a checkpoint"
            )
    if checkpoint and not checkpoint.exists() and (run.checkpoints / checkpoint.name).is_dir():
        checkpoint = run.checkpoints / checkpoint.name
    if checkpoint and (checkpoint / SEAL).is_file() and (damage := verify_checkpoint(checkpoint)):
        raise UserError(f"{checkpoint}: damaged ({damage[0]}); choose another checkpoint")
    source = checkpoint or run.resume_point(report)
    if source is None:
        raise UserError(
            f"{run.path}: expected a whole checkpoint to export, found none; train first"
        )
    step = step_of(source)
    return source, step if step >= 0 else None


def best_checkpoint(run: Run) -> Path | None:
    """The whole checkpoint with the best held-out score; None where none was evaluated."""
    saved = {step_of(path): path for path in sealed(run.checkpoints)}
    step = best_step(run, saved)
    return None if step is None else saved[step]


def used_config(run: Run) -> Any:
    """The run's config with the model in use, where it had fallbacks to choose from."""
    config = run.config()
    if not (run.path / SKELETON / SOURCE).is_file():
        return config
    used = type(config.model).model_validate(read_json(run.path / SKELETON / SOURCE))
    return config.model_copy(update={"model": used})


def kept_base(
    run: Run,
    config: Profile,
    report: Reporter,
    read: Callable[[Model, Path], Any] = load_config,
) -> Base[Any]:
    """Config, tokenizer and generation settings of a run: those it kept, else its model's."""
    kept = run.path / SKELETON
    model = next(candidates(config.model))
    if (kept / "config.json").is_file():
        # The tokenizer was kept with the chat template that the profile set.
        own: dict[str, Any] = {"name": str(kept), "revision": None}
        own |= {"chat_template": None, "chat_template_kwargs": {}}
        model = model.model_copy(update=own)
    return find_base(model, report, weights=False, read=read)


def keep_base(base: Base[Any], run: Run) -> Path:
    """Create the run's folder of base files without weights; writes name and card first."""
    folder = run.path / SKELETON
    folder.mkdir(exist_ok=True)
    write_atomically(folder / SOURCE, base.model.model_dump_json(indent=1))
    if (base.folder / "README.md").is_file():
        shutil.copyfile(base.folder / "README.md", folder / "README.md")
    if base.model.trust_remote_code:
        _copy_code(base.folder, folder)
    return folder


def _copy_code(source: Path, folder: Path) -> None:
    for path in source.glob("*.py"):
        shutil.copyfile(path, folder / path.name)


def carry_code(base: Base[Any], folder: Path) -> None:
    """Copy the code that a model needs beside it; a model of transformers' own names none.

    A published config.json may name code in its repository for older versions of the library. The
    name would lead nowhere from an export; one that says in which repository the code is stays.
    """
    if base.model.trust_remote_code:
        _copy_code(base.folder, folder)
        return
    for path in folder.glob("*.json"):
        fields = json.loads(path.read_text(encoding="utf-8"))
        places = fields.get("auto_map") if isinstance(fields, dict) else None
        if places and "--" not in str(places):
            del fields["auto_map"]
            text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")


def describe(folder: Path, card: ModelCard, also: Mapping[str, Any]) -> None:
    """Write the card, and the facts that a later card and our own tools need."""
    write_card(folder, card)
    facts = {"kind": card.kind, "dtype": card.dtype, "step": card.step, "notes": card.notes, **also}
    write_facts(folder, facts)


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write tatara.json, with the digest of the card beside it: a push tells by it whether a person
    has changed the card since."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    whole = {**facts, "card": card_digest(text)}
    (folder / FACTS).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def adapter_state(source: Path, adapter: Adapter) -> tuple[dict[str, torch.Tensor], Any]:
    """An adapter's weights as peft names them, and its config, from any kind of checkpoint.

    LoRA's A is (rank, inputs), its B (outputs, rank); all on the host.
    """
    from peft import PeftConfig
    from safetensors.torch import load_file

    if weights.layout(source) == "sharded":
        mark = f".{adapter.name}."
        own = weights.read_state(source, torch.float32)
        if any(mark in name for name in own):
            # A module's own names have the adapter's in them; those that peft saves do not.
            named = {name.replace(mark, "."): value for name, value in own.items()}
            own = {_saved_as(name): value for name, value in named.items() if _SAVED.search(name)}
        return own, lora_config(adapter)
    folder = adapter_folder(source, adapter.name)
    return load_file(folder / ADAPTER_WEIGHTS), PeftConfig.from_pretrained(str(folder))


def _saved_as(name: str) -> str:
    """peft's files leave out the wrapper of a module trained whole, and one level of DoRA's."""
    return name.replace(".modules_to_save.", ".").replace("_vector.weight", "_vector")


def save_adapter(state: dict[str, torch.Tensor], own: Any, base: str, folder: Path) -> None:
    """Write one adapter at the folder's root, whatever its name among others.

    state: A (rank, inputs) and B (outputs, rank) by peft's names, as from `adapter_state`. Raises
    TataraError where the written file differs from the state
    when read again.
    """
    from safetensors.torch import save_file

    weights.check_finite(state)
    own.base_model_name_or_path = lasting_name(base)
    own.inference_mode = True
    save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    own.save_pretrained(folder)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    found = weights.load_shapes(folder)
    if any(found.get(name) != shape for name, shape in shapes.items()):
        raise TataraError("export: the adapter that was written is not the one that was read")
