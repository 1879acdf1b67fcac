"""The settings of runs, and their differences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workloads.monitor.reading.follow import number, read_object
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.snapshot import Snapshot
from workloads.run import Run

_POINTS = 1000
_EVENTS = 500
# Fields of the manifest that differ between any two runs and explain nothing.
_OWN = ("created", "run", "id", "data", "format", "memory.moments")


@dataclass(frozen=True)
class RunFacts:
    """A run with its settings."""

    snapshot: Snapshot
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def run(self) -> Run:
        return self.snapshot.run


def read_facts(run: Run) -> RunFacts:
    """Read all of a run, which may still be active or never have ended."""
    snapshot = RunReader(run, capacity=_POINTS, most_events=_EVENTS).read_all()
    dump = read_object(run.path / "config.json")
    manifest = read_object(run.path / "manifest.json")
    return RunFacts(
        snapshot, mapping(dump.get("config")), mapping(dump.get("provenance")), manifest
    )


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def differing_settings(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Settings that differ between the runs, with the value of each run."""
    return _differing([dict(flat(run.config)) for run in runs])


def differing_environment(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """The same for code, packages and machines."""
    return _differing([
        {
            name: value
            for name, value in flat(run.manifest)
            if name not in _OWN and name.partition(".")[0] not in _OWN
        }
        for run in runs
    ])  # fmt: skip


def _differing(every: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for values in every for name in values)
    found = []
    for name in names:
        given = [values.get(name, _MISSING) for values in every]
        if any(value != given[0] for value in given):
            found.append((name, [value_text(value) for value in given]))
    return found


_MISSING = "not set"


def value_text(value: Any) -> str:
    """A setting or fact as readable text."""
    if isinstance(value, list):
        return ", ".join(value_text(inner) for inner in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {value_text(inner)}" for name, inner in value.items()) or "-"
    if value is None:
        return "-"
    if isinstance(value, int) and number(value) is not None:
        return str(value) if isinstance(value, bool) else f"{value:,}"
    return str(value)
