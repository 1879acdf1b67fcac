"""Write the settings of a RoboVLMs config as a profile, and a table of what became of each field:
mapped, kept for reference, or refused with the reason. Parents are merged. Ends with 1 where a
field was refused, also one that was mapped to a value that no profile may have; what is left is a
profile for `tatara train`."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from workloads.errors import EXIT_DONE, EXIT_FAILED, UserError

if TYPE_CHECKING:
    from workloads.vla.robovlms.translating import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the JSON file")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, nargs="?",
        help="its weights, .pt or safetensors, or the folder of DeepSpeed's shards: written as a "
        "policy that serve and train take, in the profile's folder, under its name",
    )  # fmt: skip
    parser.add_argument(
        "--base", metavar="MODEL",
        help="folder or hub id of the backbone, for its tokenizer (default: what the config names)",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="PROFILE", type=Path,
        help="profile to write, which must not exist (default: its name with .yaml, here); "
        "the table is written beside it, with .md",
    )  # fmt: skip


def main(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    from workloads.config.merge import resolve
    from workloads.vla.robovlms.config import inherited
    from workloads.vla.robovlms.translating import translate

    found = inherited(args.config)
    settings, rows = translate(found)
    profile: Path = args.output or Path(_name(args.config.stem) + ".yaml")
    table = profile.with_suffix(".md")
    if table == profile:
        raise UserError(f"--output: expected a name that ends in .yaml, found {profile}")
    model = profile.with_suffix("")
    for file in (profile, table, *([model] if args.checkpoint else [])):
        if file.exists():
            raise UserError(f"{file}: expected a name that is free, found a file; give --output")
    profile.parent.mkdir(parents=True, exist_ok=True)
    if args.checkpoint:
        # First: the profile says nothing of weights that cannot be read.
        _write_policy(args, settings, model)
    profile.write_text(_profile(args.config, settings, rows), encoding="utf-8")
    table.write_text(_table(args.config, found.parents, rows), encoding="utf-8")
    counts = Counter(row.outcome for row in rows)
    for row in rows:
        if row.outcome == "refused":
            print(f"refused: {row.name} = {row.shown}: {row.text}")
        elif row.outcome == "kept" and re.search("overwritten|^left out|\\(left out", row.text):
            print(f"kept: {row.name} = {row.shown}: {row.text}")
    print(
        f"{args.config}: {counts['mapped']} fields mapped, {counts['kept']} kept for reference, "
        f"{counts['refused']} refused"
    )
    print(f"written: {profile}, {table}")
    if args.checkpoint:
        print(f"written: {model}/, to serve; model.name={model} trains on from it")
    missing = [
        f"{section}.{name}"
        for section, name in (("model", "name"), ("data", "source"))
        if name not in settings.get(section, {})
    ]
    if missing:
        print(f"the config does not say, give them to `tatara train`: {', '.join(missing)}")
    try:
        resolve(profile, {}, [f"{name}=NAME" for name in missing])
    except UserError as error:
        print(f"refused: {error}")
        return EXIT_FAILED
    return EXIT_FAILED if counts["refused"] else EXIT_DONE


def _write_policy(args: argparse.Namespace, settings: Mapping[str, Any], model: Path) -> None:
    from workloads.config.sections import Model
    from workloads.engine.pretrained.base import locate
    from workloads.vla.robovlms.checkpoint import write_policy

    if not args.checkpoint.exists():
        raise UserError(f"expected a checkpoint, found nothing at {args.checkpoint}")
    name = args.base or settings.get("model", {}).get("name")
    if name is None:
        raise UserError(
            f"{args.config}: expected model_url or model_path to name the backbone, found none; "
            "give --base"
        )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    base = locate(Model(name=name), say, weights=False)
    write_policy(args.config, args.checkpoint, base, model, say)


def _name(stem: str) -> str:
    """A profile's name may hold fewer signs than a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-") or "robovlms"


def _profile(config: Path, settings: Mapping[str, Any], rows: Sequence["Row"]) -> str:
    refused = [row for row in rows if row.outcome == "refused"]
    lines = [
        f"# The settings of {config.name}, a config of RoboVLMs.",
        "# Train it with `tatara train`; the table beside it says what became of each field.",
        *(f"# refused: {row.name} = {row.shown}: {row.text}" for row in refused),
    ]
    content = {"workload": "vla", **settings}
    return "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _table(config: Path, parents: Sequence[Path], rows: Sequence["Row"]) -> str:
    lines = [
        f"# {config.name}",
        "",
        f"Parents: {', '.join(str(file) for file in parents) or 'none'}.",
        "",
        "| field | value | outcome | setting or reason |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = (f"`{row.name}`", f"`{row.shown}`", row.outcome, row.text)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
