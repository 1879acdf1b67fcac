"""The summary of a run's result files: as JSON, and as a page to read. Standard library alone."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.gpu._parts import PARTS


def summary(results: Path, device: str) -> dict[str, Any]:
    """All result files of a device in one, in the order of the parts."""
    parts = {}
    for part in PARTS:
        file = results / f"{part.name}.json"
        if file.is_file():
            parts[part.name] = json.loads(file.read_text(encoding="utf-8"))
    machine: dict[str, Any] = next(
        (part["machine"] for part in parts.values() if part.get("machine")), {}
    )
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device,
        "ran_on": machine.get("card") or "CPU, tiny shapes",
        "machine": machine,
        "seconds": round(sum(part["seconds"] for part in parts.values()), 1),
        "left": [part.name for part in PARTS if part.name not in parts],
        "parts": parts,
    }


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file as a whole or not at all."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    new.replace(file)


def write_summary(found: Mapping[str, Any], folder: Path) -> None:
    """summary.json and summary.md."""
    write_json(folder / "summary.json", found)
    (folder / "summary.md").write_text(page(found), encoding="utf-8")


def page(found: Mapping[str, Any]) -> str:
    """A table of the parts, then what each has found."""
    head = [f"# GPU run on {found['ran_on']}, {found['date']}", versions(found["machine"])]
    if found["device"] == "cpu":
        head.append(
            "**On a CPU, with tiny shapes and stand-ins**: that every part answers; no figure says "
            "anything of a GPU."
        )
    if found["left"]:
        head.append(f"Left for another call: {', '.join(found['left'])}.")
    lines = ["| part | what | ran on | result | seconds |", "|---|---|---|---|---|"]
    for name, part in found["parts"].items():
        cells = [name, part["title"], part.get("ran_on", found["ran_on"]), outcome(part)]
        lines.append(f"| {' | '.join([*cells, str(round(part['seconds']))])} |")
    sections = [_section(name, part) for name, part in found["parts"].items()]
    return "\n\n".join([*head, "\n".join(lines), *sections]) + "\n"


def versions(machine: Mapping[str, Any]) -> str:
    """One line: Python, packages, CUDA and driver."""
    packages = machine.get("packages", {})
    named = [f"Python {machine.get('python')}"]
    named += [f"{name} {packages[name]}" for name in packages]
    if machine.get("driver"):
        named.append(f"CUDA {machine['cuda']}, driver {machine['driver']}")
    return ", ".join(named)


def outcome(part: Mapping[str, Any]) -> str:
    """passed, skipped with the reason, or how it failed; one line for a table."""
    if part["status"] == "passed":
        return f"passed ({len(part['checks'])} checks)"
    bad = [f"{check['name']} ({check['found']})" for check in part["checks"] if not check["passed"]]
    why = part.get("error") or part.get("reason") or "; ".join(bad) or "no check was reached"
    return f"{part['status']}: {' '.join(why.split())[:300]}".replace("|", "/")


def _section(name: str, part: Mapping[str, Any]) -> str:
    lines = [f"## {name}: {part['title']}", ""]
    for check in part["checks"]:
        found = "" if check["found"] is None else f": {str(check['found'])[:300]}"
        lines.append(f"- {'passed' if check['passed'] else '**failed**'}, {check['name']}{found}")
    lines += [f"- {key} = {str(value)[:300]}" for key, value in part.get("figures", {}).items()]
    lines += [f"- {note}" for note in part.get("notes", [])]
    if part.get("error"):
        lines.append(f"- {part['error'][:600]}")
    return "\n".join(lines)
