"""List models by name: licence, prompt format, and what they need by method on one GPU.

Planned offline with the recipes llm-full, llm-lora and llm-qlora; rows of 1,024 tokens, one at a
time. With --gpu-memory only what fits is listed."""

import argparse
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workloads.commands.common import no_settings, print_json, profile_path
from workloads.device import GIB
from workloads.errors import EXIT_DONE, EXIT_FAILED, UserError

if TYPE_CHECKING:
    from workloads.config.sections import Profile
    from workloads.plan.models import KnownModel, Way

METHODS = ("full", "lora", "qlora")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="one model, or a part of names; default: all"
    )
    parser.add_argument(
        "--language", choices=["ja", "many"], help="ja: made for Japanese; many: general ones"
    )
    parser.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="only what fits a GPU of this size"
    )
    parser.add_argument("--method", choices=METHODS, help="only this way to train")
    parser.add_argument("--json", action="store_true", help="print all facts as JSON")


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Print models; returns 1 where none fits. Raises UserError for a number out of range."""
    no_settings(words)
    if args.gpu_memory is not None and not 0 < args.gpu_memory < math.inf:
        raise UserError(f"--gpu-memory: expected a number over 0, found {args.gpu_memory:g}")
    memory = int(args.gpu_memory * GIB) if args.gpu_memory else None
    methods = (args.method,) if args.method else METHODS
    planned = _planned(_named(args.name, args.language), recipes_of(methods))
    if memory is not None:
        from workloads.plan.models import fitting

        fit = [(model, fitting(ways, memory)) for model, ways in planned]
        planned = [(model, ways) for model, ways in fit if ways]
        planned.sort(key=lambda pair: -pair[0].parameters)
    if args.json:
        print_json([_as_json(model, ways, memory) for model, ways in planned])
    elif planned:
        _print(planned, methods, memory)
    else:
        print(f"no known model fits {args.gpu_memory:g} GiB; rent a larger GPU, or see --method")
    return EXIT_DONE if planned else EXIT_FAILED


def recipes_of(methods: Sequence[str]) -> dict[str, "Profile"]:
    """Method → the recipe that trains by it, as the files say."""
    from workloads.config.merge import resolve

    return {method: resolve(profile_path(f"llm-{method}", {}), {})[0] for method in methods}


def _named(name: str | None, language: str | None) -> list["KnownModel"]:
    from workloads.plan.model_names import near_models, renamed
    from workloads.plan.models import known_models

    models = known_models()
    if name is None:
        return [model for model in models if language in (None, model.language)]
    name = unicodedata.normalize("NFKC", name)
    if meant := renamed(name):
        raise UserError(f"{name}: there is no such model; meant is {meant}")
    found = [model for model in models if name.lower() in model.id.lower()]
    if not found:
        near = near_models(name)
        hint = f"did you mean {' or '.join(near)}?" if near else "`tatara models` lists them"
        raise UserError(f"no known model has {name!r} in its name; {hint}")
    others = sorted({model.language for model in found} - {language})
    found = [model for model in found if language in (None, model.language)]
    if not found:
        raise UserError(
            f"--language {language}: expected models of it with {name!r} in their names, found "
            f"some of {', '.join(others)}; leave it out"
        )
    return found


def _planned(
    models: Sequence["KnownModel"], recipes: Mapping[str, "Profile"]
) -> list[tuple["KnownModel", list["Way"]]]:
    from workloads.plan.models import ways

    shapes = [model.shape for model in models]
    return [
        (model, ways(shape, recipes) if shape else [])
        for model, shape in zip(models, shapes, strict=True)
    ]


def _as_json(model: "KnownModel", ways: Sequence["Way"], memory: int | None) -> dict[str, Any]:
    from dataclasses import asdict

    facts = asdict(model) | {"parameters": model.parameters or None}
    facts["ways"] = [
        {"method": way.method, "settings": list(way.settings), "bytes": way.total} for way in ways
    ]
    return facts | {"gpu_memory": memory}


def _print(
    planned: Sequence[tuple["KnownModel", list["Way"]]],
    methods: Sequence[str],
    memory: int | None,
) -> None:
    print("  size" + "".join(f"{method:>8}" for method in methods) + "  model (GiB by method)")
    for model, ways in planned:
        size = f"{model.parameters / 1e9:.1f}B" if model.parameters else "?"
        first = {way.method: way for way in reversed(ways)}
        cells = "".join(f"{_cell(first.get(method)):>8}" for method in methods)
        access = f", {model.access}" if model.access not in (None, "open") else ""
        prompt = model.chat_template or model.prompt
        facts = f"{model.licence}{access}; {prompt}; {model.sure}"
        print(f"{size:>6}{cells}  {model.id:<50}  {facts}")
    for line in _notes(planned, memory):
        print(line)


def _cell(way: "Way | None") -> str:
    if way is None:
        return "-"
    return f"{way.total / GIB:.1f}" + ("*" if way.settings else "")


def _notes(planned: Sequence[tuple["KnownModel", list["Way"]]], memory: int | None) -> list[str]:
    lines = []
    if any(way.settings for _, ways in planned for way in ways if memory):
        lines.append(
            "* with train.master_weights=compute: weights in bf16, small updates round away"
        )
    if any(not model.parameters for model, _ in planned):
        lines.append("?: not planned: its shape is from memory, or transformers has no such kind")
    noted: dict[str, list[str]] = {}
    for model, _ in planned:
        if model.note:
            noted.setdefault(model.note, []).append(model.id.rpartition("/")[2])
    lines += [f"{', '.join(names)}: {note}" for note, names in noted.items()]
    (model, ways) = planned[0]
    if ways:
        words = " ".join(ways[0].settings)
        lines.append(
            f"such as: tatara train llm-{ways[0].method} model.name={model.id} data.source=FILE"
            + (f" {words}" if words else "")
            + (f" model.chat_template={model.chat_template}" if model.chat_template else "")
        )
    return lines
