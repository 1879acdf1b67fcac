"""Checks of an llm profile before its start; `deep` reads every row."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workloads.data.row_files import data_files, left_out, left_out_lines
from workloads.data.rows import by_reason
from workloads.engine.hub.publish import may_push
from workloads.engine.keep_best import keep_best
from workloads.engine.pretrained.files import local_model
from workloads.engine.warm_up import warm_up
from workloads.environment import cache_folder
from workloads.errors import UserError
from workloads.findings import Finding
from workloads.llm.config import LlmConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from workloads.llm.data.prepare import Prepared


# Names of the output layer in models.
_HEADS = ("lm_head", "embed_out", "output_layer", "score")


def shallow(config: LlmConfig, env: Mapping[str, str]) -> list[Finding]:
    """Whether the profile's files exist and its settings fit together."""
    found = [_data("data.source", source.source) for source in config.data.sources]
    if config.data.eval_source:
        found.append(_data("data.eval_source", config.data.eval_source))
    for source in config.data.sources:
        found += _left_out(source.source)
    return [
        *found,
        *_settings(config),
        *_evaluation(config),
        *keep_best(config, config.evaluation.every_steps),
        *local_model(config),
        *may_push(config),
    ]


def _settings(config: LlmConfig) -> list[Finding]:
    """Settings that are valid each, but have no effect together."""
    found = []
    heads = [name for name in config.adapter.targets if name in _HEADS]
    if config.adapter.method != "full" and heads:
        text = f"{heads[0]} is the model's head, which takes no adapter"
        fix = f"take it out, or train it whole by adapter.modules_to_save=[{heads[0]}]"
        found.append(Finding("adapter.targets", "error", text, fix))
    found += warm_up(config)
    evaluates, best = config.evaluation.every_steps, config.checkpoints.keep_best
    for name in ("patience", "samples"):
        if getattr(config.evaluation, name) and not evaluates:
            text = "is set, and nothing is evaluated during training"
            fix = "set evaluation.every_steps"
            found.append(Finding(f"evaluation.{name}", "warning", text, fix))
    if config.export.checkpoint == "best" and not (evaluates and best):
        text = "is set to best, and no checkpoint is kept for its held-out loss"
        fix = "set evaluation.every_steps and checkpoints.every_steps"
        found.append(Finding("export.checkpoint", "warning", text, fix))
    if evaluates and best and not config.checkpoints.every_steps:
        text = "keeps no checkpoint but the last one, which need not be the best"
        fix = f"set checkpoints.every_steps={evaluates}, as evaluation.every_steps is"
        found.append(Finding("checkpoints.keep_best", "warning", text, fix))
    return found


def _left_out(source: str) -> list[Finding]:
    from workloads.llm.data.rows import Source

    place = Source(source)
    files = left_out(place.path) if place.is_local else []
    fix = "convert them, or name the files to read"
    lines = left_out_lines([str(file) for file in files])
    return [Finding("data.source", "warning", line, fix) for line in lines]


def _evaluation(config: LlmConfig) -> list[Finding]:
    """Whether evaluations have the rows they need, checked before the training."""
    data, wanted = config.data, config.evaluation
    found = []
    if wanted.task and "qa" not in data.formats:
        text = f"{wanted.task} asks questions, and data.format is {data.format}"
        fix = "map columns under data.format=qa, or set evaluation.task=null"
        found.append(Finding("evaluation.task", "error", text, fix))
    if data.eval_source or data.eval_split or data.eval_rows:
        return found
    fix = "set data.eval_split, data.eval_source or data.eval_rows"
    if wanted.task:
        text = f"no rows are held out to ask {wanted.task} with"
        found.append(Finding("evaluation.task", "error", text, fix))
    names = [name for name in ("every_steps", "patience", "samples") if getattr(wanted, name)]
    for name in names if not wanted.task else []:
        text = "is set, and no rows are held out"
        found.append(Finding(f"evaluation.{name}", "warning", text, fix))
    return found


def _data(name: str, source: str) -> Finding:
    from workloads.llm.data.rows import Source

    place = Source(source)
    if not place.is_local:
        return Finding(name, "ok", f"{source} on the hub")
    try:
        files = data_files(place.path)
    except UserError as error:
        return Finding(name, "error", str(error))
    return Finding(name, "ok", f"{source}, {sum(file.stat().st_size for file in files):,} bytes")


def deep(config: LlmConfig, env: Mapping[str, str]) -> list[Finding]:
    """Read and tokenise every row, as the first phase of training does; the cache keeps it."""
    try:
        data, _, reported = prepared(config, env)
    except UserError as error:
        return [Finding("rows", "error", str(error))]
    splits = [data.report.train, data.report.evaluation]
    skipped = [row for split in splits if split for row in split.bad_rows]
    bad = [Finding("bad row", "warning", line) for line in by_reason(skipped)]
    notes = [Finding("model", "ok", line) for line in reported]
    lines = [Finding("rows", "ok", line) for line in data.report.lines(whole=False)]
    return [*notes, *bad, *lines, *warm_up(config, data.report.train.sequences)]


def prepared(
    config: LlmConfig, env: Mapping[str, str]
) -> "tuple[Prepared, PreTrainedTokenizerBase, list[str]]":
    """The rows as in training, the tokenizer, and the reported lines."""
    from workloads.engine.pretrained.base import find_base
    from workloads.engine.pretrained.files import positions
    from workloads.llm.data.prepare import prepare
    from workloads.llm.model import load_tokenizer

    reported: list[str] = []
    base = find_base(config.model, reported.append, weights=False)
    tokenizer = load_tokenizer(base, reported.append)
    if config.adapter.method != "full":
        _check_adapter(base.config, config)
    cache = cache_folder(env)
    data = prepare(config, tokenizer, cache, positions=positions(base.config.to_dict()))
    return data, tokenizer, reported


def _check_adapter(own: "PreTrainedConfig", config: LlmConfig) -> None:
    """Whether the model has the modules that the adapter names; no weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    from workloads.engine.pretrained.adapter import check_targets
    from workloads.llm.new_tokens import check_trained

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(own)
    check_targets(model, config.adapter)
    if config.model.add_tokens or config.model.add_special_tokens:
        check_trained(model, config.adapter)
