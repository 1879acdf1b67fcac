"""Copies a run home: sealed checkpoints while it trains, everything at its end, with all digests
verified. Seals are copied last, so that an incomplete copy has none and is not used. A file with a
wrong digest may have the right size and time, so it is copied again by digest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workloads.errors import TataraError
from workloads.rent.remote import Remote
from workloads.run.integrity import SEAL, delete, sealed, step_of, verify_checkpoint
from workloads.run.verify import Verified, verify

_AGAIN = 3  # copies of a damaged file, before the machine is kept for a person to look at
_FINAL = "final"


class DamagedCopy(TataraError):
    """A copied file differs from the sealed one, even after repeated copies."""


@dataclass
class Backup:
    """One run on the machine and its copy here; `whole`: verified folders of the copy."""

    remote: Remote
    folder: str
    copy: Path
    say: Callable[[str], None]
    whole: set[str] = field(default_factory=set)

    @property
    def newest(self) -> str:
        """The most valuable folder of the copy: final, else the newest whole checkpoint."""
        if _FINAL in self.whole:
            return _FINAL
        names = [path.name for path in sealed(self.copy / "checkpoints") if path.name in self.whole]
        return names[-1] if names else ""

    def pull(self, complete: Sequence[str], final: bool, seconds: float) -> None:
        """Copy small files and sealed folders; complete: names of the sealed checkpoints."""
        keep = [f"--include=/checkpoints/{name}/" for name in complete]
        rules = [*keep, "--exclude=/checkpoints/*/"]
        rules += [] if final else [f"--exclude=/{_FINAL}/"]
        rules += ["--exclude=/.*", "--exclude=.*.[0-9]*"]  # files that are being written
        self.remote.pull(self.folder, self.copy, [f"--exclude={SEAL}", *rules], seconds)
        self.remote.pull(self.folder, self.copy, rules, seconds)
        for name in complete:
            self._verified(self.copy / "checkpoints" / name, seconds)
        if final:
            self._verified(self.copy / _FINAL, seconds)
        self._rotate(complete)

    def pull_all(self, complete: Sequence[str], final: bool, seconds: float) -> list[Verified]:
        """The last copy: all of the above again, small files by digest, then `tatara verify`.

        Raises DamagedCopy where a saved folder is not whole here.
        """
        self.whole.clear()
        self.pull(complete, final, seconds)
        folders = ["--exclude=/checkpoints/*/", f"--exclude=/{_FINAL}/"]
        self.remote.pull(self.folder, self.copy, folders, seconds, check=True)
        found = verify(self.copy)
        bad = [item for item in found if item.state not in ("whole", "left out", "no seal")]
        if bad:
            raise DamagedCopy(f"{self.copy}: {bad[0].name}: {bad[0].state}: {bad[0].notes[0]}")
        return found

    def _verified(self, path: Path, seconds: float) -> None:
        if path.name in self.whole or not path.is_dir():
            return
        below = path.relative_to(self.copy)
        damage = verify_checkpoint(path)
        for _ in range(_AGAIN):
            if not damage:
                break
            if not (path / SEAL).is_file():
                return  # the run deleted it during the copy
            self.say(f"{below}: the copy is damaged ({damage[0]}); copied again")
            self.remote.pull(f"{self.folder}/{below}", path, [], seconds, check=True)
            damage = verify_checkpoint(path)
        if damage:
            raise DamagedCopy(f"{path}: {damage[0]}, after {_AGAIN} further copies")
        self.whole.add(path.name)

    def _rotate(self, complete: Sequence[str]) -> None:
        """Delete checkpoints that the run has deleted, in any state, once a newer one is whole.

        One that was deleted during its copy has no seal here.
        """
        folder = self.copy / "checkpoints"
        here = [path for path in folder.iterdir() if step_of(path) >= 0] if folder.is_dir() else []
        newest = max((step_of(path) for path in here if path.name in self.whole), default=-1)
        for path in here:
            if path.name not in complete and step_of(path) < newest:
                delete(path)
                self.whole.discard(path.name)
