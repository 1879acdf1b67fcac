"""One part of bench/gpu/run.sh: `python -m bench.gpu.part NAME --device cpu --result FILE`."""

import argparse
import importlib
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu import _machine
from bench.gpu._parts import NAMES, RUNS, find
from bench.gpu._summary import write_json


class Skipped(Exception):
    """A part, or some of it, that this machine has not what it needs for."""


@dataclass
class Report:
    """What a part has found; `check` decides whether it passed.

    memory: rows of settings with planned and measured bytes. ran_on: what it ran on, in words.
    file: holds what was found so far, so that a part that is ended loses none of it.
    """

    device: str
    work: Path
    ran_on: str
    file: Path | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    memory: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def runs(self) -> Path:
        """The folder of this part's own trainings, which goes with its end."""
        return self.work / RUNS

    def check(self, name: str, passed: bool, found: Any = None) -> None:
        """Note whether something is as it has to be, and what was found."""
        self.checks.append({"name": name, "passed": bool(passed), "found": found})
        self.save({"status": "unfinished"})
        print(f"{'ok    ' if passed else 'FAILED'} {name}: {found}", flush=True)

    def close(self, name: str, found: float, wanted: float, within: float) -> None:
        """Note whether two numbers agree within a share of the second."""
        off = abs(found - wanted) / max(abs(wanted), 1e-12)
        self.check(name, off <= within, f"{found:.6g} against {wanted:.6g}, off by {off:.2%}")

    def note(self, text: str) -> None:
        """Note something to read with the figures."""
        self.notes.append(text)
        print(text, flush=True)

    def save(self, how: Mapping[str, Any]) -> None:
        """Write everything to the file of results. how: the status, and why it is so."""
        if self.file is not None:
            found = {"ran_on": self.ran_on, "machine": self.machine, "checks": self.checks}
            found |= {"figures": self.figures, "memory": self.memory, "notes": self.notes}
            write_json(self.file, {**how, **found})


def main() -> int:
    """Run the part and write its result, whatever happens to it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    machine = _machine.facts(options.device)
    ran_on = machine["card"] or "CPU, tiny shapes"
    report = Report(options.device, options.work, ran_on, options.result, machine)
    module, _, name = find(options.name).function.partition(":")
    result: dict[str, Any] = {}
    if report.on_gpu and (held := _machine.wait_for_memory()):
        report.note(f"by others when it began: {held}")
    try:
        getattr(importlib.import_module(f"bench.gpu.{module}"), name)(report)
        passed = bool(report.checks) and all(check["passed"] for check in report.checks)
        result["status"] = "passed" if passed else "failed"
    except Skipped as reason:
        result |= {"status": "skipped", "reason": str(reason)}
    except Exception as error:  # whatever it was is what there is to report
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
        result |= {"status": "failed", "error": text[:1500]}
    finally:
        # A checkpoint of a 1B with its optimizer has 15 GB: those of all parts would fill a disk.
        shutil.rmtree(report.runs, ignore_errors=True)
    report.save(result)
    return 0


if __name__ == "__main__":
    # Parts import Report from this module by its own name, not as __main__.
    from bench.gpu.part import main as run

    sys.exit(run())
