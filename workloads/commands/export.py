"""Turn a checkpoint of RUN into a model folder that transformers loads, with a model card."""

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.commands.common import loaded_environment, no_settings
from workloads.errors import EXIT_DONE, UserError
from workloads.run import find, outputs

if TYPE_CHECKING:
    from workloads.engine.pretrained.combine import Weighted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="a run: folder, profile, id or its start, latest"
    )
    parser.add_argument(
        "--output", "--out", type=Path, metavar="DIR", help="folder to write (default: RUN/final)"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="name, folder, or best (default: export.checkpoint)",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="of an adapter: write the whole model, compare logits",
    )
    parser.add_argument(
        "--adapters",
        metavar="A=0.7,B=0.3",
        help="the weighted sum of several adapters over one base, each the run's own by its name, "
        "another run, or a folder; needs --output",
    )
    parser.add_argument(
        "--ollama", action="store_true", help="also write a Modelfile: template and stop tokens"
    )
    parser.add_argument("--push-to-hub", action="store_true", help="to export.hub_model_id")
    parser.add_argument("--hub-model-id", help="repository to push to; implies --push-to-hub")


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    no_settings(words)
    env = loaded_environment()
    run = find(outputs(env), "*", args.run)
    config = run.config()
    target = args.hub_model_id or config.export.hub_model_id or env.get("HUB_MODEL_ID")
    if args.ollama and config.workload != "llm":
        raise UserError(f"--ollama: expected a run of a language model, found {config.workload}")
    pushes = args.push_to_hub or args.hub_model_id
    if pushes and not target:
        raise UserError("--push-to-hub needs export.hub_model_id, HUB_MODEL_ID or --hub-model-id")
    if pushes and target:
        from workloads.engine.hub.upload import push, writer

        writer(target)  # a token that may not write is named before minutes of export
    adapters = _weighted(args, config, env) if args.adapters else None
    workload = importlib.import_module(f"workloads.{config.workload}.export")
    exported = workload.EXPORTER.export(
        run,
        args.output,
        checkpoint=args.checkpoint,
        merge=args.merge or None,
        adapters=adapters,
        report=_report,
    )
    print(exported.folder)
    if args.ollama:
        from workloads.llm.modelfile import write_modelfile

        print(f"ollama create {config.name} -f {write_modelfile(exported.folder)}")
    if pushes and target:
        wanted = config.export
        print(push(exported.folder, target, wanted.private, wanted.revision, _report))
    return EXIT_DONE


def _weighted(args: argparse.Namespace, config: Any, env: dict[str, str]) -> "dict[str, Weighted]":
    """The named adapters with their weights; the run's own has no folder."""
    from workloads.engine.pretrained.combine import Weighted

    if config.workload != "llm" or config.adapter.method == "full":
        found = f"one of {config.workload} with adapter.method={config.adapter.method}"
        raise UserError(f"--adapters: expected an llm run that trained an adapter, found {found}")
    if args.output is None:
        raise UserError("--adapters: expected --output DIR, found none; RUN/final stays as it is")
    chosen: dict[str, Weighted] = {}
    for pair in args.adapters.split(","):
        word, _, number = pair.strip().rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = nan
        if not word or not isfinite(weight) or weight == 0:
            raise UserError(f"--adapters: expected NAME=WEIGHT, such as a=0.7, found {pair!r}")
        if word == config.adapter.name:
            name, folder = word, None
        else:
            name, folder = _adapter_place(word, config.adapter.name, outputs(env))
        if name in chosen:
            raise UserError(f"--adapters: expected each adapter once, found {name} again")
        chosen[name] = Weighted(weight, folder)
    if len(chosen) < 2:
        raise UserError(f"--adapters: expected two adapters or more, found {', '.join(chosen)}")
    return chosen


def _adapter_place(word: str, own: str, root: Path) -> tuple[str, Path]:
    """Name of an adapter inside peft, and its folder; UserError where it has none."""
    from workloads.engine.pretrained.files import is_adapter
    from workloads.run.models import exported_model

    folder = Path(word).expanduser()
    if not is_adapter(folder):
        try:
            folder = Path(exported_model(word, root, "llm")[0])
        except UserError as error:
            raise UserError(
                f"--adapters: expected {own}, a run or an adapter's folder, found {word!r}: {error}"
            ) from None
    if not is_adapter(folder):
        raise UserError(f"--adapters: expected an adapter in {folder}, found none")
    # peft accepts no dots or slashes in a name.
    return re.sub(r"\W", "_", word.strip("/")), folder


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
