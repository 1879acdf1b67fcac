"""From a run to a model folder that transformers loads: weights, config, tokenizer, card.

`export(run)` reads the newest whole checkpoint from disk, whatever strategy wrote it; no GPU and no
other rank is needed. `export_state` writes weights that are in memory. Both write beside `out` and
give it its name only when the folder has been read back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from workloads.config.sections import Adapter
from workloads.engine.export.card import Card, card_of, licence_of, write_card
from workloads.engine.export.export import (
    FACTS,
    SHARD_SIZE,
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
from workloads.engine.hub.hub import push
from workloads.engine.pretrained import weights
from workloads.engine.pretrained.adapter import ADAPTER_WEIGHTS, MergeReport, merge_into
from workloads.engine.pretrained.base import Base, find_base
from workloads.engine.pretrained.chat import with_stops
from workloads.engine.pretrained.files import Tell, compute_dtype
from workloads.engine.pretrained.load import valid_generation
from workloads.errors import TataraError, UserError
from workloads.json_files import read_json
from workloads.llm.config import LlmConfig
from workloads.llm.model import load_for_use, load_model, load_tokenizer
from workloads.run import Run


@dataclass(frozen=True)
class Skeleton:
    """Everything of a model folder but the weights; `folder` is where it was read from."""

    config: PreTrainedConfig
    generation: GenerationConfig  # stops where answers were taught to end
    tokenizer: PreTrainedTokenizerBase
    folder: Path


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
    config: LlmConfig = settled_config(run)
    source, step = source_of(run, checkpoint, tell)
    dtype = compute_dtype(config.train)
    skeleton = read_skeleton(run, config, tell)
    out = out or run.final

    def card(kind: str) -> Card:
        return card_of(run, config, kind, dtype_name(dtype), step, skeleton.folder)

    difference = None
    if config.adapter.method == "full":
        kind = "model"
        export_state(weights.read_state(source, dtype), skeleton, out, card(kind))
    elif merge or (merge is None and config.model.random_init):
        kind = "merged"
        report = _export_merged(config, source, skeleton, out, card(kind), tell)
        difference = report.difference
    else:
        kind = "adapter"
        _export_adapter(config.adapter, config.model.name, source, skeleton, out, card(kind))
    done = Exported(out, kind, step, dtype_name(dtype), difference)
    tell(done.line())
    return done


def refresh_card(run: Run, folder: Path | None = None) -> None:
    """Write an exported model's card anew, when evaluations have come in since."""
    folder = folder or run.final
    facts = read_json(folder / FACTS)
    config: LlmConfig = settled_config(run)
    skeleton = read_skeleton(run, config, silent)
    card = card_of(run, config, facts["kind"], facts["dtype"], facts["step"], skeleton.folder)
    write_card(folder, replace(card, notes=tuple(facts["notes"])))


def keep_skeleton(
    base: Base[PreTrainedConfig],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
) -> None:
    """Keep config, tokenizer and the base's card in the run: export then needs nothing else."""
    folder = keep_base(base, run)
    model.config.save_pretrained(folder)
    generation = model.generation_config
    valid = valid_generation(generation) if generation is not None else None
    with_stops(tokenizer, valid).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_skeleton(run: Run, config: LlmConfig, tell: Tell) -> Skeleton:
    """Config, generation config and tokenizer: the run's own where it has them, else the base's."""
    base = kept_base(run, config, tell)
    base.config.name_or_path = config.model.name
    generation = None
    if (base.folder / "generation_config.json").is_file():
        generation = valid_generation(GenerationConfig.from_pretrained(base.folder))
    tokenizer = load_tokenizer(base, silent)
    return Skeleton(base.config, with_stops(tokenizer, generation), tokenizer, base.folder)


def export_state(
    state: Mapping[str, torch.Tensor], skeleton: Skeleton, out: Path, card: Card
) -> None:
    """Write weights that are in memory, whole and on the host, as a model folder.

    state: by the model's own names, in the type to write. The folder is read back before it takes
    its name: every weight must be there in the model's shape, tied ones tied.
    """
    weights.check_finite(state)
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    config = type(skeleton.config).from_dict(skeleton.config.to_dict())
    config.use_cache = True
    with torch.device("meta"):
        shell: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    _check_names(shell, state)
    shell.generation_config = skeleton.generation
    with weights.whole_folder(out, needed=int(1.02 * weights.size_of(state))) as folder:
        shell.save_pretrained(folder, state_dict=dict(state), max_shard_size=SHARD_SIZE)
        skeleton.tokenizer.save_pretrained(folder)
        describe(folder, card)
        _check_model(folder)


def _check_names(shell: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    """The weights must be exactly those of the model; tied ones may be named once."""
    wanted = {name: tuple(value.shape) for name, value in shell.state_dict().items()}
    tied = set(shell.all_tied_weights_keys)
    missing = sorted(name for name in wanted if name not in state and name not in tied)
    extra = sorted(set(state) - set(wanted))
    if missing or extra:
        what = f"{missing[0]} is missing" if missing else f"{extra[0]} is not part of the model"
        raise UserError(f"export: expected the weights of a {type(shell).__name__}, but {what}")
    for name, value in state.items():
        if tuple(value.shape) != wanted[name]:
            raise UserError(
                f"export: expected {name} of shape {wanted[name]}, found {tuple(value.shape)}"
            )


def _check_model(folder: Path) -> None:
    """Read the folder as a user will, without filling the weights in."""
    try:
        shell, found = AutoModelForCausalLM.from_pretrained(
            folder, device_map={"": "meta"}, output_loading_info=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TataraError(f"export: what was written does not load: {error}") from error
    wrong = sorted([*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]])
    if wrong or found["error_msgs"]:
        raise TataraError(f"export: what was written does not load: {(wrong or [''])[0]}")
    size = shell.config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise TataraError(f"export: the tokenizer has {len(tokenizer)} tokens, the model {size}")


def _export_adapter(
    adapter: Adapter, base: str, source: Path, skeleton: Skeleton, out: Path, card: Card
) -> None:
    """The adapter alone, at the folder's root whatever its name was among others."""
    state, own = adapter_state(source, adapter)
    with weights.whole_folder(out, needed=int(1.05 * weights.size_of(state))) as folder:
        save_adapter(state, own, base, folder)
        skeleton.generation.save_pretrained(folder)
        skeleton.tokenizer.save_pretrained(folder)
        describe(folder, card)


def _export_merged(
    config: LlmConfig, source: Path, skeleton: Skeleton, out: Path, card: Card, tell: Tell
) -> MergeReport:
    """Base and adapter in one, after a comparison of logits; a quantised base is never merged."""
    # Under `lora` the base is frozen and whole: held in the compute type, not quantised.
    plain = config.adapter.model_copy(update={"method": "lora"})
    whole = find_base(config.model, tell)
    base = load_model(whole, config.model_copy(update={"adapter": plain}), tell)
    quantised = _quantised_base(whole, config, tell)
    with TemporaryDirectory(prefix="tatara-") as spare:
        place = _as_peft_folder(source, config, Path(spare))
        merged, report = merge_into(base, place, config.adapter.name, quantised=quantised)
    tell(report.line())
    noted = replace(card, notes=(report.line(),))
    export_state(merged.state_dict(), skeleton, out, noted)
    return report


def merge(
    base: str,
    adapter: Path,
    out: Path,
    *,
    precision: str = "bf16",
    name: str = "default",
    quantised: PreTrainedModel | None = None,
    tell: Tell = silent,
) -> MergeReport:
    """Merge a saved adapter, of a run or not, into a base by hub id or folder; write it to `out`.

    precision: the type that the base is held and written in. quantised: the base as the adapter was
    trained over it, for the comparison. Raises UserError where the logits differ by too much.
    """
    loaded = load_for_use(base, precision, tell)
    model = loaded.model.to("cpu")
    folder = loaded.base.folder
    generation = with_stops(loaded.tokenizer, model.generation_config)
    skeleton = Skeleton(model.config, generation, loaded.tokenizer, folder)
    dtype = model.dtype
    merged, report = merge_into(model, adapter, name, quantised=quantised)
    tell(report.line())
    licence = licence_of(folder)
    card = Card(
        out.name, base, "merged", dtype_name(dtype), licence=licence, notes=(report.line(),)
    )
    export_state(merged.state_dict(), skeleton, out, card)
    return report


def _as_peft_folder(source: Path, config: LlmConfig, spare: Path) -> Path:
    """Where peft can read the adapter: the checkpoint itself, or what its shards hold."""
    from safetensors.torch import save_file

    if weights.layout(source) == "adapter":
        return source
    state, own = adapter_state(source, config.adapter)
    save_file(state, spare / ADAPTER_WEIGHTS)
    own.save_pretrained(spare)
    return spare


def _quantised_base(
    base: Base[PreTrainedConfig], config: LlmConfig, tell: Tell
) -> PreTrainedModel | None:
    if config.adapter.method != "qlora":
        return None
    if find_spec("bitsandbytes") is None:
        tell("merge: bitsandbytes is not installed; not compared with the quantised base")
        return None
    return load_model(base, config, tell)


__all__ = [
    "Exported",
    "Skeleton",
    "export",
    "export_state",
    "keep_skeleton",
    "merge",
    "push",
    "read_skeleton",
    "refresh_card",
    "settled_config",
]
