"""Sealed folders: digests written last, verified before use or after a copy.

Checkpoints are sealed, and exported models.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SEAL = "complete.json"
PREFIX = "checkpoint-"
STAGING = ".staging"  # where a checkpoint is written before it is sealed and gets its name
_OWN = "digest"  # the seal's digest of its own content
_CHUNK = 8 << 20


def digest(path: Path) -> str:
    """XXH3-128 of a file: finds every accidental change at the speed of memory."""
    import xxhash

    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return str(state.hexdigest())


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file in one step: a reader sees the old text or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder but its seal."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def seal(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Sync every file of a folder to disk and write `complete.json` last.

    Files get the rights that the folder has: safetensors 0.8 writes for the owner alone, whatever
    the umask. Returns the seal: the facts given, and each file's size in bytes and digest.
    """
    files = {}
    found = files_of(folder)
    rights = folder.stat().st_mode & 0o666
    for path in found:
        with suppress(PermissionError):  # a mount without rights of its own
            path.chmod(rights)
    # The disk writes while the digests are computed from memory.
    with ThreadPoolExecutor(1) as disk:
        synced = disk.map(_sync, found)
        for path in found:
            files[path.relative_to(folder).as_posix()] = _fact(path)
        list(synced)  # raises an error of the thread
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _sync(inner)
    return _write_seal(folder, {**facts, "files": files})


@contextmanager
def changing(folder: Path, *names: str) -> Iterator[None]:
    """Change or add the named files of a sealed folder; the digests of all others stay as they are.

    The seal is removed meanwhile: an interrupted change leaves a folder without one. A folder
    without a seal gets none, and a damaged seal stays as it is.
    """
    try:
        record = read_seal(folder)
    except (OSError, ValueError):
        yield
        return
    (folder / SEAL).unlink()
    yield
    for name in names:
        _sync(folder / name)
        record["files"][name] = _fact(folder / name)
    _write_seal(folder, record)


def _fact(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "xxh3_128": digest(path)}


def _write_seal(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    record[_OWN] = _own_digest(record)
    write_atomically(folder / SEAL, json.dumps(record, indent=1))
    _sync(folder)
    return record


def read_seal(folder: Path) -> dict[str, Any]:
    """Read a seal; raises ValueError where it is none or was changed since it was written."""
    record = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise ValueError("it lists no files")
    if record.get(_OWN) != _own_digest(record):
        raise ValueError("its content changed after it was written (digest differs)")
    return record


def _own_digest(record: dict[str, Any]) -> str:
    """Digest of a seal's other content: a changed fact could pass for another number of ranks."""
    import xxhash

    content = {name: value for name, value in record.items() if name != _OWN}
    return str(xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest())


def verify_checkpoint(path: str | os.PathLike[str]) -> list[str]:
    """Sentences on everything wrong with a sealed folder; empty if it is whole."""
    folder = Path(path)
    try:
        files = read_seal(folder)["files"]
    except FileNotFoundError:
        return [f"{SEAL}: missing, so it was never finished"]
    except (OSError, ValueError) as error:
        return [f"{SEAL}: unreadable: {error}"]
    if not files:
        return [f"{SEAL}: lists no files"]
    return [text for name, fact in files.items() if (text := _damage(folder / name, name, fact))]


def _damage(path: Path, name: str, fact: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != fact["size"]:
            return f"{name}: expected {fact['size']} bytes, found {size}"
        if digest(path) != fact["xxh3_128"]:
            return f"{name}: its content changed after it was written (digest differs)"
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: unreadable: {error}"
    return None


def step_of(path: Path) -> int:
    """The optimizer step in a checkpoint's name, -1 where the name is another."""
    digits = path.name.removeprefix(PREFIX)
    return int(digits) if path.name.startswith(PREFIX) and digits.isdecimal() else -1


def sealed(folder: Path) -> list[Path]:
    """Checkpoints in a folder by step, oldest first; unfinished and set-aside ones left out."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if step_of(path) >= 0 and (path / SEAL).is_file()]
    return sorted(found, key=step_of)


def newest_whole(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are set aside and reported in one line."""
    for path in reversed(sealed(folder)):
        damage = verify_checkpoint(path)
        if not damage:
            return path
        aside = _free_name(path.with_name(f"damaged-{path.name}"))
        path.rename(aside)
        report(f"{path.name} is damaged ({damage[0]}); set aside as {aside.name}")
    return None


def _free_name(path: Path) -> Path:
    name, number = path, 1
    while name.exists():
        number += 1
        name = path.with_name(f"{path.name}-{number}")
    return name


def publish(staged: Path, final: Path) -> None:
    """Give a sealed folder its name in one step; a name once used is never written again."""
    if final.exists():
        final.rename(_free_name(final.with_name(f"replaced-{final.name}")))
    os.rename(staged, final)
    _sync(final.parent)


_ASIDE = ("damaged-", "replaced-")  # what a run has set aside, and never uses again


def set_aside(folder: Path) -> list[Path]:
    """Checkpoints that were set aside as damaged or replaced, which only take disk space."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.startswith(_ASIDE))


def rotate(
    folder: Path,
    keep_last: int,
    best: Path | None,
    report: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Delete checkpoints beyond the newest `keep_last`, by number, but never the best one.

    Also deletes older folders without a seal, which are unusable, and those set aside before the
    oldest kept one. Returns the deleted ones. Failures are reported, a sentence each: they are no
    reason to end a training.
    """
    whole = sealed(folder)
    kept = set(whole[-keep_last:]) | {path for path in whole if best and path.name == best.name}
    oldest = min((step_of(path) for path in whole[-keep_last:]), default=0)
    old = [path for path in whole if path not in kept]
    if folder.is_dir():
        cut = [path for path in folder.iterdir() if path not in whole and step_of(path) >= 0]
        old += [path for path in cut if step_of(path) < oldest]
    old += [path for path in set_aside(folder) if step_aside(path) < oldest]
    gone = []
    for path in old:
        try:
            delete(path)
            gone.append(path)
        except OSError as error:
            report(f"{path.name} cannot be deleted: {error.strerror or error}")
    return gone


def step_aside(path: Path) -> int:
    """The step of a checkpoint that was set aside, 0 where its name has none."""
    digits = re.search(rf"{PREFIX}(\d+)", path.name)
    return int(digits[1]) if digits else 0


def delete(path: Path) -> None:
    """Delete a folder, or a link without its target, which belongs to a person."""
    if path.is_symlink():
        path.unlink()
        return
    # The seal is deleted first: an interrupted deletion leaves no folder that looks whole.
    (path / SEAL).unlink(missing_ok=True)
    shutil.rmtree(path)
