"""Finds runs, by name or the newest."""

from collections.abc import Sequence
from pathlib import Path

from workloads.errors import UserError
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.snapshot import Snapshot
from workloads.run import Run
from workloads.run.directory import named

MOST = 200  # runs that are listed; older ones are still found by name
_TAIL, _POINTS, _EVENTS = 1 << 16, 32, 20


def runs(root: Path) -> list[Run]:
    """All runs of all profiles, the newest first."""
    dated = []
    for path in root.glob("*/*/config.json"):
        try:
            dated.append((path.stat().st_mtime_ns, path.parent))
        except OSError:
            continue  # removed at this moment
    return [Run(path) for _, path in sorted(dated, reverse=True)]


def locate(root: Path, wanted: str) -> Run:
    """A run by its path, or by what `named` takes; UserError names what there is."""
    path = Path(wanted)
    if (path / "config.json").is_file() and (path / "events.jsonl").exists():
        return Run(path)
    known = [run.path for run in some_runs(root)]
    found = named(known, wanted)
    if len(found) == 1:
        return Run(found[0])
    names = [f"{path.parent.name}/{path.name}" for path in known[:5]]
    there = ", ".join(names) + (" …" if len(known) > 5 else "")
    many = f"{len(found)} runs of that name" if found else f"no run {wanted!r}"
    raise UserError(f"expected a run of {root}, found {many}; there are: {there}")


def some_runs(root: Path) -> list[Run]:
    """All runs, the newest first; UserError where there is none."""
    known = runs(root)
    if not known:
        raise UserError(
            f"expected a run in {root}/, found none; start one with `tatara train "
            "profiles/demo.yaml`, or name the folder of the runs with TATARA_OUTPUTS"
        )
    return known


class RunList:
    """Reads many runs, a little of each; an ended run without a change is not read again."""

    def __init__(self) -> None:
        self._readers: dict[Path, RunReader] = {}
        self._ended: dict[Path, tuple[int, Snapshot]] = {}

    def read(self, runs: Sequence[Run]) -> list[Snapshot]:
        """Snapshots of the runs, in their order."""
        here = {run.path for run in runs}
        self._readers = {path: reader for path, reader in self._readers.items() if path in here}
        self._ended = {path: known for path, known in self._ended.items() if path in here}
        return [self.read_one(run) for run in runs]

    def read_one(self, run: Run) -> Snapshot:
        changed = _changed(run)
        known = self._ended.get(run.path)
        if known and known[0] == changed:
            return known[1]
        if run.path not in self._readers:
            self._readers[run.path] = RunReader(run, _POINTS, _TAIL, most_events=_EVENTS)
        snapshot = self._readers[run.path].read()
        # A lost run may still come back; a half-read one has more to read.
        if not snapshot.active and snapshot.phase != "lost" and snapshot.reading is None:
            self._ended[run.path] = (changed, snapshot)
            del self._readers[run.path]
        return snapshot


def newest_active(root: Path) -> Run:
    """The newest active run, else the newest of all; raises UserError where there is none."""
    known = some_runs(root)
    listed = RunList()
    return next((run for run in known[:MOST] if listed.read_one(run).active), known[0])


def _changed(run: Run) -> int:
    try:
        return run.events.stat().st_mtime_ns
    except OSError:
        return 0
