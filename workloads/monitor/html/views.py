"""State that requests share: each run is read once for all browsers, and none waits for another."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from workloads.monitor.html import evaluations
from workloads.monitor.reading import find
from workloads.monitor.reading.curve import Curve
from workloads.monitor.reading.hardware import Hardware, MachineReading
from workloads.monitor.reading.run_reader import RunReader
from workloads.monitor.reading.settings import RunFacts
from workloads.monitor.reading.snapshot import Snapshot
from workloads.run import Run

_FRESH = 0.8  # seconds for which a reading is reused
_READERS = 8  # runs whose curves are kept
_SAMPLED = 3  # steps shown of a held-out question
_SAMPLE = 2.0  # seconds between two measurements of this machine, with a browser or without
Value = TypeVar("Value")


class Shared(Generic[Value]):
    """A value that is read again once it is old.

    One request reads; others use the old value meanwhile, and wait only where there is none.
    """

    def __init__(
        self, read: Callable[[], Value], is_partial: Callable[[Value], bool] = lambda value: False
    ) -> None:
        """is_partial: whether there is more to read immediately."""
        self._read, self._is_partial = read, is_partial
        self._lock = threading.Lock()
        self._known: tuple[float, Value] | None = None

    def get(self) -> Value:
        known = self._known
        if known and time.monotonic() - known[0] < _FRESH and not self._is_partial(known[1]):
            return known[1]
        if not self._lock.acquire(blocking=known is None):
            assert known is not None
            return known[1]
        try:
            if self._known is None or self._known is known:
                self._known = time.monotonic(), self._read()
            return self._known[1]
        finally:
            self._lock.release()


class Views:
    """Readers of requested runs, of the list, and of this machine."""

    def __init__(self, root: Path, first: Run | None, name_of: Callable[[Run], str]) -> None:
        """first: a run that is found even outside of the root."""
        self._root, self._first, self._name_of = root, first, name_of
        self._hardware = Hardware()
        self._run_list = find.RunList()
        self._lock = threading.Lock()
        self._samples: dict[Path, tuple[int, str]] = {}
        self._readers: OrderedDict[Path, tuple[RunReader, Shared[Snapshot]]] = OrderedDict()
        self.machine: Shared[MachineReading] = Shared(self._hardware.read)
        self.list: Shared[list[Snapshot]] = Shared(self._read_list)
        self.older = 0  # runs besides those of the list
        self._sampled = float("-inf")

    def sample(self) -> None:
        """Measure this machine, at most every few seconds."""
        if time.monotonic() - self._sampled >= _SAMPLE:
            self._sampled = time.monotonic()
            self.machine.get()

    def history(self) -> dict[str, Curve]:
        """Curves of this machine since the start of the server."""
        return {name: curve.copy() for name, curve in list(self._hardware.history.items())}

    def _read_list(self) -> list[Snapshot]:
        runs = find.runs(self._root)
        self.older = len(runs[find.MOST :])
        return self._run_list.read(runs[: find.MOST])

    def find(self, names: Sequence[str]) -> list[Run | None]:
        """Find runs by `profile/id` among the existing ones: a name never becomes a path."""
        known = {self._name_of(run): run for run in find.runs(self._root)}
        if self._first:
            known[self._name_of(self._first)] = self._first
        return [known.get(name) for name in names]

    def live(self, run: Run) -> Shared[Snapshot]:
        """The run as it is now."""
        return self._entry(run)[1]

    def closer(self, run: Run, first: float, last: float) -> dict[str, Curve]:
        """The curves of a run between two steps, read again; empty where that would take long."""
        reader, shared = self._entry(run)
        shared.get()
        return reader.window(first, last)

    def facts(self, run: Run) -> RunFacts:
        """The run as it is now, with its settings."""
        reader, shared = self._entry(run)
        return RunFacts(shared.get(), reader.config, {}, reader.manifest)

    def samples(self, run: Run) -> str:
        """The held-out questions with their answers, read again only when there are new ones."""
        try:
            written = run.samples.stat().st_mtime_ns
        except OSError:
            return ""
        known = self._samples.get(run.path)
        if known is None or known[0] != written:
            if len(self._samples) >= _READERS:
                self._samples.clear()
            known = self._samples[run.path] = written, evaluations.sampled(run, _SAMPLED)
        return known[1]

    def _entry(self, run: Run) -> tuple[RunReader, Shared[Snapshot]]:
        with self._lock:
            if run.path not in self._readers:
                reader = RunReader(run)
                self._readers[run.path] = (
                    reader,
                    Shared(
                        lambda: reader.read(self.machine.get().gpus),
                        lambda snapshot: snapshot.reading is not None,
                    ),
                )
            self._readers.move_to_end(run.path)
            while len(self._readers) > _READERS:
                self._readers.popitem(last=False)
            return self._readers[run.path]
