"""Exports a GRPO run to a folder that transformers loads; built on the engine's exporter.

A model with images is written with its processor, and by the library: names in its files differ
from those of its modules.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from workloads.engine.export.card import ModelCard
from workloads.engine.export.export import SHARD_SIZE, keep_base, silent
from workloads.engine.export.exporter import Exporter, ExportJob, Merged, Whole, check_loaded
from workloads.engine.pretrained import weights
from workloads.engine.pretrained.adapter import merge_into
from workloads.engine.pretrained.base import Base, find_base
from workloads.engine.pretrained.chat import with_stops
from workloads.engine.pretrained.load import generation_settings
from workloads.errors import UserError
from workloads.grpo.config import GrpoConfig
from workloads.grpo.model import Processing, kind_of, load_model, load_processing, sees_images
from workloads.grpo.objective import Grpo
from workloads.run import Run

_USE = """With {needs}:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # where this file lies
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="{dtype}")
```"""


def keep_skeleton(
    config: GrpoConfig,
    base: Base[PreTrainedConfig],
    model: PreTrainedModel,
    processing: Processing,
    run: Run,
) -> None:
    """Keep config, processor and the base's card in the run: export then needs nothing else."""
    folder = keep_base(base, run)
    model.config.save_pretrained(folder)
    with_stops(processing, model.generation_config).save_pretrained(folder)
    if config.grpo.max_pixels or config.grpo.min_pixels:
        # The model's own processor, without the limits of this training.
        processing = load_processing(base, Grpo())
    processing.save_pretrained(folder)


class GrpoExporter(Exporter[GrpoConfig]):
    """Exports models with or without images through the library, which knows their file format."""

    def trained(self, job: ExportJob[GrpoConfig]) -> Whole:
        """The trained model, all weights.

        Raises UserError where weights of the checkpoint are missing or unknown.
        """
        own = job.base.config
        factory = kind_of(own).factory
        if weights.layout(job.source) == "whole":
            made, found = factory.from_pretrained(
                job.source,
                config=own,
                dtype=job.dtype,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=job.base.model.trust_remote_code,
            )
            wrong = sorted([*found["missing_keys"], *found["unexpected_keys"]])
        else:
            made = factory.from_config(
                own, dtype=job.dtype, trust_remote_code=job.base.model.trust_remote_code
            )
            fitted = made.load_state_dict(weights.read_state(job.source, job.dtype), strict=False)
            tied = set(made.all_tied_weights_keys)
            wrong = sorted({*fitted.missing_keys, *fitted.unexpected_keys} - tied)
        if wrong:
            raise UserError(
                f"{job.source}: expected exactly the weights of a {type(made).__name__}, found "
                f"{wrong[0]} missing or unknown; export with the version that trained it"
            )
        return _whole_model(made, job)

    def merged(self, job: ExportJob[GrpoConfig], adapter: Path) -> tuple[Whole, Merged]:
        plain = job.config.adapter.model_copy(update={"method": "lora"})
        base = find_base(job.config.model, job.report)
        model = load_model(base, job.config.model_copy(update={"adapter": plain}), job.report)
        merged, report = merge_into(model, adapter)
        whole = _whole_model(cast(PreTrainedModel, merged), job)
        return whole, Merged(report.line(), report.difference)

    def accompany(self, job: ExportJob[GrpoConfig], folder: Path) -> None:
        processing = load_processing(job.base, Grpo())
        processing.save_pretrained(folder)
        with_stops(processing, generation_settings(job.base, silent)).save_pretrained(folder)

    def check(self, job: ExportJob[GrpoConfig], folder: Path) -> None:
        written = Base(
            job.base.model.model_copy(update={"name": str(folder)}), folder, job.base.config
        )
        check_loaded(kind_of(job.base.config).factory, folder, job.base.model.trust_remote_code)
        load_processing(written, Grpo())

    def card(self, card: ModelCard, base: Base[Any]) -> ModelCard:
        if not sees_images(base.config):
            return card
        needs = "transformers and peft" if card.kind == "adapter" else "transformers"
        use = _USE.format(needs=needs, dtype=card.dtype)
        return replace(card, task="image-text-to-text", use=use)


def _whole_model(made: PreTrainedModel, job: ExportJob[GrpoConfig]) -> Whole:
    made.config.name_or_path = job.config.model.name
    made.config.use_cache = True
    # Written with the processor's chat template, which tells where answers end.
    made.generation_config = GenerationConfig()
    return Whole(
        made.state_dict(), lambda folder: made.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    )


EXPORTER = GrpoExporter()
export = EXPORTER.export
