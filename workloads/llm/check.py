"""What can be wrong with an llm profile before it starts; `deep` reads every row."""

from collections.abc import Mapping
from pathlib import Path

from workloads.data.rows import data_files
from workloads.engine.hub.publish import may_push
from workloads.errors import UserError
from workloads.findings import Finding
from workloads.llm.config import LlmConfig


def shallow(config: LlmConfig, env: Mapping[str, str]) -> list[Finding]:
    """Whether the files that the profile names are there."""
    found = [_data("data.source", config.data.source)]
    if config.data.eval_source:
        found.append(_data("data.eval_source", config.data.eval_source))
    return [*found, *_evaluation(config), *may_push(config)]


def _evaluation(config: LlmConfig) -> list[Finding]:
    """Whether there is what evaluations ask for: seen before the training, not behind it."""
    data, wanted = config.data, config.evaluation
    found = []
    if wanted.task and data.format != "qa":
        text = f"{wanted.task} asks questions, and data.format is {data.format}"
        mend = "map columns under data.format=qa, or set evaluation.task=null"
        found.append(Finding("evaluation.task", "error", text, mend))
    if data.eval_source or data.eval_split or data.eval_rows:
        return found
    mend = "set data.eval_split, data.eval_source or data.eval_rows"
    if wanted.task:
        text = f"no rows are held out to ask {wanted.task} with"
        found.append(Finding("evaluation.task", "error", text, mend))
    elif wanted.every_steps:
        text = "is set, and no rows are held out"
        found.append(Finding("evaluation.every_steps", "warning", text, mend))
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
    from workloads.engine.pretrained.base import find_base
    from workloads.llm.data.prepare import prepare
    from workloads.llm.model import load_tokenizer

    told: list[str] = []
    try:
        base = find_base(config.model, told.append, weights=False)
        tokenizer = load_tokenizer(base, told.append)
        data = prepare(config, tokenizer, Path(env.get("TATARA_CACHE") or ".cache"))
    except UserError as error:
        return [Finding("rows", "error", str(error))]
    splits = [data.report.train, data.report.evaluation]
    bad = [
        Finding("bad row", "warning", one) for split in splits if split for one in split.bad_rows
    ]
    notes = [Finding("model", "ok", line) for line in told]
    return [*notes, *bad, *(Finding("rows", "ok", line) for line in data.report.lines())]
