"""Turn a checkpoint of RUN into a model folder that transformers loads, with a model card."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from workloads.commands.common import loaded_environment, no_settings
from workloads.errors import EXIT_DONE, UserError
from workloads.run import find, outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, its id, or latest")
    parser.add_argument(
        "--output", "--out", type=Path, metavar="DIR", help="folder to write (default: RUN/final)"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="name, folder, or best (default: export.checkpoint)",
    )
    parser.add_argument(
        "--merge", action="store_true", help="an adapter's run: the whole model, logits compared"
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
    workload = importlib.import_module(f"workloads.{config.workload}.export")
    exported = workload.EXPORTER.export(
        run, args.output, checkpoint=args.checkpoint, merge=args.merge or None, tell=_tell
    )
    print(exported.folder)
    if args.ollama:
        from workloads.llm.modelfile import write_modelfile

        print(f"ollama create {config.name} -f {write_modelfile(exported.folder)}")
    if pushes and target:
        from workloads.engine.hub.upload import push

        wanted = config.export
        print(push(exported.folder, target, wanted.private, wanted.revision, _tell))
    return EXIT_DONE


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
