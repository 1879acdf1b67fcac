"""Export of a run to a model folder: the shared frame, with hooks for each workload.

`export(run)` reads the newest whole checkpoint from disk, whatever strategy wrote it; no GPU and no
other rank is needed. The folder gets its name only after it has been read back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import torch

from workloads.config.sections import Model, Profile
from workloads.engine.export.card import ModelCard, card_of, write_card
from workloads.engine.export.export import (
    Exported,
    adapter_state,
    best_checkpoint,
    carry_code,
    describe,
    dtype_name,
    kept_base,
    save_adapter,
    silent,
    source_of,
    used_config,
    write_facts,
)
from workloads.engine.hub.upload import CARD, FACTS
from workloads.engine.pretrained import weights
from workloads.engine.pretrained.base import Base, load_config
from workloads.engine.pretrained.combine import Weighted, check_combinable, combine
from workloads.engine.pretrained.files import Reporter, compute_dtype
from workloads.errors import TataraError, UserError
from workloads.json_files import read_json
from workloads.run import Run
from workloads.run.integrity import changing, seal

P = TypeVar("P", bound=Profile)


@dataclass(frozen=True)
class ExportJob(Generic[P]):
    """One export: the run and its config, the checkpoint, and the base that the run kept.

    kind: model, merged or adapter. dtype: of the written weights.
    """

    run: Run
    config: P
    source: Path
    step: int | None
    kind: str
    dtype: torch.dtype
    base: Base[Any]
    report: Reporter


@dataclass(frozen=True)
class Whole:
    """A model that is ready to be written.

    state: its weights by name, for checks before anything is written; save: writes them and the
    config into a folder.
    """

    state: Mapping[str, torch.Tensor]
    save: Callable[[Path], None]


@dataclass(frozen=True)
class Merged:
    """Result of a merge: a line for people, and the largest difference of logits or actions."""

    line: str = ""
    difference: float | None = None


class Exporter(ABC, Generic[P]):
    """The frame of an export; a workload's subclass adds the content of its model folders."""

    def read(self, model: Model, folder: Path) -> Any:
        """Read config.json in a base's folder."""
        return load_config(model, folder)

    @abstractmethod
    def trained(self, job: ExportJob[P]) -> Whole:
        """The model of a run that trained all weights."""

    @abstractmethod
    def merged(self, job: ExportJob[P], adapter: Path) -> tuple[Whole, Merged]:
        """Base and adapter merged, after a comparison of their outputs; `adapter` is peft's folder.

        The base is held in the type of the export, never quantised.
        """

    def unmerged(self, job: ExportJob[P]) -> Any:
        """The base that adapters are loaded over, in the type of the export, never quantised.

        Raises UserError for a workload whose export has one adapter only.
        """
        raise UserError(f"--adapters: expected a run of llm, found {job.config.workload}")

    @abstractmethod
    def accompany(self, job: ExportJob[P], folder: Path) -> None:
        """Write everything but weights, config and card: tokenizer, processor, statistics."""

    @abstractmethod
    def check(self, job: ExportJob[P], folder: Path) -> None:
        """Load a whole model's folder as its user will; raises TataraError where that fails."""

    def card(self, card: ModelCard, base: Base[Any]) -> ModelCard:
        """The card with this workload's additions."""
        return card

    def facts(self, job: ExportJob[P]) -> dict[str, Any]:
        """Further facts that our own tools need to use the model as it was trained."""
        return {}

    def export(
        self,
        run: Run,
        out: Path | None = None,
        *,
        checkpoint: Path | None = None,
        merge: bool | None = None,
        adapters: Mapping[str, Weighted] | None = None,
        report: Reporter = silent,
    ) -> Exported:
        """Export a run's checkpoint to `out`, by default its newest whole one to its `final/`.

        merge: write an adapter's run as a whole model instead of the adapter alone; by default only
        where its base has random weights, which nobody else has. adapters: by name, to
        write their weighted sum in place of the run's own, which is the one without a folder.
        Weights are in the type that the run computed in. Raises UserError for a run without
        a whole checkpoint, and for adapters that cannot be combined.
        """
        config: P = used_config(run)
        if checkpoint is None and config.export.checkpoint == "best":
            checkpoint = best_checkpoint(run)
            if checkpoint is None:
                report("export: no checkpoint was evaluated; taking the newest one")
        source, step = source_of(run, checkpoint, report)
        kind = "adapter"
        if config.adapter.method == "full":
            kind = "model"
        elif merge or (merge is None and config.model.random_init):
            kind = "merged"
        base = kept_base(run, config, report, self.read)
        job = ExportJob(run, config, source, step, kind, compute_dtype(config.train), base, report)
        out, done = out or run.final, Merged()
        if kind == "model":
            whole = self.trained(job)
        else:
            state, own = self._adapter(job, adapters or {})
            whole = Whole(state, lambda folder: save_adapter(state, own, config.model.name, folder))
        if kind == "merged":
            with TemporaryDirectory(prefix="tatara-") as spare:
                whole.save(Path(spare))
                whole, done = self.merged(job, Path(spare))
            report(done.line)
        self._write(job, whole, out, done)
        exported = Exported(out, kind, step, dtype_name(job.dtype), done.difference)
        report(exported.line())
        return exported

    def _adapter(self, job: ExportJob[P], adapters: Mapping[str, Weighted]) -> tuple[Any, Any]:
        """Weights and config of the run's adapter, or of the weighted sum of several."""
        if not adapters:
            return adapter_state(job.source, job.config.adapter)
        named = job.config.model.name
        with TemporaryDirectory(prefix="tatara-") as spare:
            if any(adapter.folder is None for adapter in adapters.values()):
                state, own = adapter_state(job.source, job.config.adapter)
                save_adapter(state, own, named, Path(spare))
            found = {
                name: replace(adapter, folder=adapter.folder or Path(spare))
                for name, adapter in adapters.items()
            }
            check_combinable(found, named)
            state, own = combine(self.unmerged(job), found)
        listed = ", ".join(f"{adapter.weight:g} {name}" for name, adapter in adapters.items())
        job.report(f"combined: {listed}, of rank {own.r}")
        return state, own

    def _write(self, job: ExportJob[P], whole: Whole, out: Path, done: Merged) -> None:
        weights.check_finite(whole.state)
        card = card_of(
            job.run, job.config, job.kind, dtype_name(job.dtype), job.step, job.base.folder
        )
        card = replace(self.card(card, job.base), notes=(done.line,) if done.line else ())
        with weights.whole_folder(out, int(1.05 * weights.size_of(whole.state))) as folder:
            whole.save(folder)
            self.accompany(job, folder)
            carry_code(job.base, folder)
            describe(folder, card, self.facts(job))
            if job.kind != "adapter":
                self.check(job, folder)
            seal(folder, {"kind": job.kind, "step": job.step})

    def refresh_card(self, run: Run, folder: Path | None = None) -> None:
        """Rewrite an exported model's card, with evaluations that came since."""
        folder = folder or run.final
        facts = read_json(folder / FACTS)
        config: P = used_config(run)
        base = kept_base(run, config, silent, self.read)
        card = card_of(run, config, facts["kind"], facts["dtype"], facts["step"], base.folder)
        with changing(folder, CARD, FACTS):
            write_card(folder, replace(self.card(card, base), notes=tuple(facts["notes"])))
            write_facts(folder, facts)


def check_loaded(factory: Any, folder: Path, trust_remote_code: bool) -> Any:
    """Load a folder as a user of transformers will, without reading weights.

    Returns the model, on the meta device. Raises TataraError where it does not load whole.
    """
    try:
        shell, found = factory.from_pretrained(
            folder,
            device_map={"": "meta"},
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise TataraError(f"export: what was written does not load: {error}") from error
    wrong = sorted([*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]])
    if wrong or found["error_msgs"]:
        raise TataraError(f"export: what was written does not load: {(wrong or [''])[0]}")
    return shell
