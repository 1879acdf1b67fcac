"""The summary of a run's result files: as JSON, and as a page to read. Standard library alone."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.gpu._parts import PARTS, find


def summary(results: Path, device: str) -> dict[str, Any]:
    """All result files of a device in one, in the order of the parts."""
    parts = {}
    for part in PARTS:
        if "status" in (found := read_json(results / f"{part.name}.json")):
            parts[part.name] = found
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


def read_json(file: Path) -> dict[str, Any]:
    """A file's object; empty where there is none, or half of one."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


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
    rows = [["part", "what", "ran on", "result", "seconds"]]
    for name, part in found["parts"].items():
        ran_on = part.get("ran_on", found["ran_on"])
        rows.append([name, part["title"], ran_on, outcome(part), str(round(part["seconds"]))])
    if found["device"] != "cpu":
        expected = (str(find(name).expected) for name in found["parts"])
        for row, cell in zip(rows, ["expected on an H100", *expected], strict=True):
            row.append(cell)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{'---|' * len(rows[0])}")
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
