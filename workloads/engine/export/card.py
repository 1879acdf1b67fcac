"""The model card of an export: what it is, its base and data, training and scores.

Everything comes from the run's own files; unknown facts are left for a person to fill in.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workloads.config.merge import leaves
from workloads.config.sections import Profile
from workloads.engine.pretrained.files import is_local
from workloads.engine.summary import rows_of
from workloads.run import Run

_LICENCE = "Set the licence: the base's own terms, and those of the data, apply to this model."
# Settings that readers look for; the rest is in the run's config.json.
_TOLD = ("data.", "optim.", "train.", "adapter.", "parallel.strategy", "parallel.nodes")


@dataclass(frozen=True)
class ModelCard:
    """Facts of one exported model. `kind`: model, adapter or merged; `dtype` of its weights.

    licence: the base's identifier, None where unknown. scores: evaluation → its numbers.
    """

    name: str
    base: str
    kind: str
    dtype: str
    random_init: bool = False
    licence: str | None = None
    step: int | None = None
    summary: str = ""
    data: str = ""
    task: str = "text-generation"
    use: str = ""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)


def card_of(
    run: Run, config: Profile, kind: str, dtype: str, step: int | None, base_folder: Path | None
) -> ModelCard:
    """The card of a run's export at a step; `base_folder` may name the licence."""
    manifest = _json(run.path / "manifest.json")
    settings = {
        name: value
        for name, value in leaves(config).items()
        if name.startswith(_TOLD) and value not in (None, "", (), {})
    }
    if config.adapter.method == "full":
        settings = {key: value for key, value in settings.items() if "adapter." not in key}
    git = manifest.get("git") or {}
    commit = f"{git['commit']}{' with changes' if git.get('changed') else ''}" if git else ""
    origin = {"run": run.id, "profile": config.name, "code": commit}
    return ModelCard(
        name=f"{config.name} {run.id}",
        base=config.model.name,
        random_init=config.model.random_init,
        kind=kind,
        dtype=dtype,
        licence=licence_of(base_folder),
        step=step,
        summary=config.summary,
        data=_sources(settings.get("data.source", "")),
        tags=config.export.tags,
        settings=settings,
        losses=_losses(run, step),
        scores=_scores(run.evaluation),
        versions=manifest.get("versions") or {},
        origin={name: text for name, text in origin.items() if text},
    )


def _sources(source: Any) -> str:
    """One or several sources as text."""
    if isinstance(source, str):
        return source
    names = (item["source"] if isinstance(item, dict) else item.source for item in source)
    return ", ".join(names)


def _json(path: Path) -> dict[str, Any]:
    """A file of the run, empty where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _losses(run: Run, step: int | None) -> dict[str, float]:
    """The last training and held-out loss up to the exported step."""
    found: dict[str, float] = {}
    for row in rows_of(run):
        if step is not None and row["step"] > step:
            continue
        for key, label in (("loss", "training loss"), ("eval_loss", "held-out loss")):
            if isinstance(row.get(key), int | float):
                found[label] = float(row[key])
    return found


def _scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Every task's summary under the run's evaluation folder by its place there, oldest first."""
    found = {}
    for path in sorted(folder.glob("**/*.json"), key=lambda path: path.stat().st_mtime_ns):
        score = _json(path)
        if "task" in score and "rows" in score:
            where = path.parent.relative_to(folder).as_posix()
            found[score["task"] if where == "." else f"{score['task']}, {where}"] = score
    return found


def licence_of(folder: Path | None) -> str | None:
    """The licence that a model folder's own card states."""
    if folder is None or not (folder / "README.md").is_file():
        return None
    text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if front is None:
        return None
    try:
        stated = yaml.safe_load(front[1])
    except yaml.YAMLError:
        return None
    licence = stated.get("license") if isinstance(stated, dict) else None
    return licence if isinstance(licence, str) else None


def write_card(folder: Path, card: ModelCard) -> None:
    """Write README.md with the front matter that the hub reads."""
    (folder / "README.md").write_text(render(card), encoding="utf-8")


def render(card: ModelCard) -> str:
    """The card as Markdown."""
    front = yaml.safe_dump(_front(card), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", f"# {card.name}", _lead(card), _usage(card)]
    if card.scores or card.losses:
        parts.append("## How good it is\n\n" + _quality(card))
    if card.settings:
        parts.append("## How it was trained\n\n" + _list(card.settings))
    if card.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in card.notes))
    parts.append("## Where it comes from\n\n" + _list({**card.origin, **card.versions}))
    parts.append(f"## Licence\n\n{_licence(card)}")
    return "\n\n".join(parts) + "\n"


def _front(card: ModelCard) -> dict[str, Any]:
    """Front matter for the hub, which refuses names that are no repositories."""
    front: dict[str, Any] = {"library_name": "peft" if card.kind == "adapter" else "transformers"}
    front["pipeline_tag"] = card.task
    if card.licence:
        front["license"] = card.licence
    if not card.random_init and not is_local(card.base):
        front["base_model"] = card.base
    if card.data and not is_local(card.data):
        front["datasets"] = [card.data]
    own = ["tatara", *(["lora"] if card.kind == "adapter" else [])]
    front["tags"] = list(dict.fromkeys([*own, *card.tags]))
    return front


def _lead(card: ModelCard) -> str:
    origin = (
        f"random weights of the shape of `{card.base}`" if card.random_init else f"`{card.base}`"
    )
    data = f" on `{card.data}`" if card.data else ""
    made = {
        "model": f"Trained from {origin}{data}",
        "adapter": f"An adapter for {origin}, trained{data} with the base frozen",
        "merged": f"An adapter trained{data} over {origin} and merged into it",
    }[card.kind]
    at = f", at step {card.step}" if card.step is not None else ""
    summary = f"{card.summary}.\n\n" if card.summary else ""
    types = (
        f"For a base in {card.dtype}." if card.kind == "adapter" else f"Weights in {card.dtype}."
    )
    return f"{summary}{made}{at}. {types}"


def _usage(card: ModelCard) -> str:
    if card.use:
        return f"## Use\n\n{card.use}"
    needs = "transformers and peft" if card.kind == "adapter" else "transformers"
    return (
        f"## Use\n\nWith {needs}:\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this file is\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="{card.dtype}")\n```'
    )


def _quality(card: ModelCard) -> str:
    lines = []
    if card.scores:
        lines += [
            "| evaluation | questions | strict | flexible | form |",
            "|---|---|---|---|---|",
        ]
        for name, score in card.scores.items():
            shares = [_share(score.get(key)) for key in ("strict", "flexible", "marked")]
            lines.append(f"| {name} | {score['rows']} | {' | '.join(shares)} |")
    if card.losses:
        lines += [""] if lines else []
        lines += [f"- {name}: {value:.4g}" for name, value in card.losses.items()]
    return "\n".join(lines)


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "not measured"


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    # Spaces at the ends of a prompt are part of it, and a new line would end the list.
    is_odd = isinstance(value, str) and (value.strip() != value or "\n" in value)
    return f"`{json.dumps(value, ensure_ascii=False)}`" if is_odd else str(value)


def _licence(card: ModelCard) -> str:
    if card.random_init:
        return "No pretrained weights are in it. Set the licence under which you publish it."
    if card.licence:
        return f"`{card.licence}`, as the base states it. The terms of the data apply too."
    return _LICENCE
