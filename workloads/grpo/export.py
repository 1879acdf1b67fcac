"""From a run to a model folder that transformers loads: weights, config, processor, card.

`export(run)` reads the newest whole checkpoint from disk, whatever strategy wrote it. What it
writes takes its name only when the folder has been read back.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from workloads.config.sections import Model
from workloads.engine.export.card import Card, card_of
from workloads.engine.export.export import (
    SHARD_SIZE,
    SKELETON,
    Exported,
    adapter_state,
    describe,
    dtype_name,
    keep_base,
    kept_base,
    save_adapter,
    settled_config,
    silent,
    source_of,
)
from workloads.engine.pretrained import weights
from workloads.engine.pretrained.adapter import merge_into
from workloads.engine.pretrained.base import Base, find_base
from workloads.engine.pretrained.chat import with_stops
from workloads.engine.pretrained.files import Tell, compute_dtype
from workloads.engine.pretrained.load import valid_generation
from workloads.errors import TataraError, UserError
from workloads.grpo.config import Grpo, GrpoConfig
from workloads.grpo.model import (
    Processing,
    kind_of,
    load_model,
    load_processing,
    sees_images,
)
from workloads.json_files import read_json
from workloads.run import Run


def export(
    run: Run,
    out: Path | None = None,
    *,
    checkpoint: Path | None = None,
    merge: bool | None = None,
    tell: Tell = silent,
) -> Exported:
    """Export a run's checkpoint to `out`, by default its newest whole one to the run's `final/`.

    merge: write an adapter's run as a whole model; by default only where its base are random
    weights, which nobody else has. Raises UserError for a run without a whole checkpoint.
    """
    config: GrpoConfig = settled_config(run)
    source, step = source_of(run, checkpoint, tell)
    dtype = dtype_name(compute_dtype(config.train))
    out = out or run.final
    whole = config.adapter.method == "full"
    merged = not whole and (merge or (merge is None and config.model.random_init))
    kind = "model" if whole else "merged" if merged else "adapter"
    base = run.path / SKELETON
    card = card_of(run, config, kind, dtype, step, base)
    card = replace(card, task="image-text-to-text" if _has_images(base) else card.task)
    if whole:
        _write_model(_whole_model(source, run, config), run, config, out, card)
    elif merged:
        _write_merged(config, source, run, out, card, tell)
    else:
        _write_adapter(config, source, run, out, card)
    done = Exported(out, kind, step, dtype)
    tell(done.line())
    return done


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
    generation = model.generation_config
    valid = valid_generation(generation) if generation is not None else None
    with_stops(processing, valid).save_pretrained(folder)
    if config.grpo.max_pixels or config.grpo.min_pixels:
        # The model's own, without the limits of this training.
        processing = load_processing(base, Grpo())
    processing.save_pretrained(folder)


def _has_images(folder: Path) -> bool:
    return (folder / "config.json").is_file() and "vision_config" in read_json(
        folder / "config.json"
    )


def _whole_model(source: Path, run: Run, config: GrpoConfig) -> PreTrainedModel:
    """The trained model on the host, from whole weights or from shards.

    Files of whole weights hold the names of the library's files, which for models with images are
    not those of its modules: only the library itself knows how to read them.
    """
    dtype = compute_dtype(config.train)
    own = kept_base(run, config, silent).config
    if weights.layout(source) == "whole":
        made, found = kind_of(own).factory.from_pretrained(
            source, config=own, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        wrong = sorted([*found["missing_keys"], *found["unexpected_keys"]])
    else:
        made = kind_of(own).factory.from_config(own, dtype=dtype)
        fitted = made.load_state_dict(weights.read_state(source, dtype), strict=False)
        tied = set(made.all_tied_weights_keys)
        wrong = sorted({*fitted.missing_keys, *fitted.unexpected_keys} - tied)
    if wrong:
        raise UserError(
            f"{source}: expected exactly the weights of a {type(made).__name__}, found {wrong[0]} "
            "missing or unknown; export with the version that trained it"
        )
    result: PreTrainedModel = made
    return result


def _write_model(
    made: PreTrainedModel, run: Run, config: GrpoConfig, out: Path, card: Card
) -> None:
    """Write a model that is on the host as a folder."""
    state = made.state_dict()
    weights.check_finite(state)
    kept = kept_base(run, config, silent)
    made.config.name_or_path = config.model.name
    made.config.use_cache = True
    if (kept.folder / "generation_config.json").is_file():
        made.generation_config = valid_generation(GenerationConfig.from_pretrained(kept.folder))
    with weights.whole_folder(out, needed=int(1.02 * weights.size_of(state))) as part:
        made.save_pretrained(part, max_shard_size=SHARD_SIZE)
        load_processing(kept, Grpo()).save_pretrained(part)
        describe(part, card)
        _check_model(part)


def _check_model(folder: Path) -> None:
    """Read the folder as a user will, without filling the weights in."""
    written = find_base(Model(name=str(folder)), silent)
    try:
        _, found = kind_of(written.config).factory.from_pretrained(
            folder, device_map={"": "meta"}, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise TataraError(f"export: what was written does not load: {error}") from error
    load_processing(written, Grpo())
    wrong = sorted([*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]])
    if wrong or found["error_msgs"]:
        raise TataraError(f"export: what was written does not load: {(wrong or [''])[0]}")


def _save_adapter(source: Path, config: GrpoConfig, folder: Path) -> None:
    save_adapter(*adapter_state(source, config.adapter), config.model.name, folder)


def _write_adapter(config: GrpoConfig, source: Path, run: Run, out: Path, card: Card) -> None:
    """The adapter alone, at the folder's root whatever its name was among others."""
    size = sum(path.stat().st_size for path in source.rglob("adapter_model.safetensors"))
    with weights.whole_folder(out, needed=int(1.05 * size)) as folder:
        _save_adapter(source, config, folder)
        load_processing(kept_base(run, config, silent), Grpo()).save_pretrained(folder)
        describe(folder, card)


def _write_merged(
    config: GrpoConfig, source: Path, run: Run, out: Path, card: Card, tell: Tell
) -> None:
    """Base and adapter in one, after a comparison of logits; a quantised base is never merged."""
    plain = config.adapter.model_copy(update={"method": "lora"})
    whole = find_base(config.model, tell)
    base = load_model(whole, config.model_copy(update={"adapter": plain}), tell)
    with TemporaryDirectory(prefix="tatara-") as spare:
        _save_adapter(source, config, Path(spare))
        merged, report = merge_into(base, Path(spare))
    tell(report.line())
    _write_model(
        cast(PreTrainedModel, merged), run, config, out, replace(card, notes=(report.line(),))
    )


__all__ = ["Exported", "export", "keep_skeleton", "sees_images", "settled_config"]
