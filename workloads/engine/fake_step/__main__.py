"""`python -m workloads.engine.fake_step FILE`: the step that a JSON file describes, in bytes.

FILE: `config` as a run's config.json has it, `fields` of the model's config.json, `world` ranks.
"""

import importlib
import json
import sys
import time
from pathlib import Path

from workloads.catalogue import WORKLOADS
from workloads.config.merge import load_dump
from workloads.engine.fake_step.step import measure
from workloads.json_files import read_json
from workloads.plan.replay import reserved_bytes
from workloads.run.directory import FORMAT


def main() -> None:
    file = Path(sys.argv[1])
    config, job = load_dump(file, FORMAT), read_json(file)
    module, _, name = WORKLOADS[config.workload].fake_step.partition(":")
    build = getattr(importlib.import_module(module), name)
    since = time.monotonic()
    found = measure(config, job["fields"], build, job["world"])
    facts = {
        "allocated": found.allocated,
        "beside": found.beside,
        "states": found.states,
        "phase": found.peak.phase,
        "operation": found.peak.operation,
        "parts": dict(found.peak.parts),
        "peaks": dict(found.peaks),
        "reserved": found.beside + reserved_bytes(found.events),
        "reserved_in_blocks": found.beside + reserved_bytes(found.events, expandable=False),
        "seconds": round(time.monotonic() - since, 1),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
