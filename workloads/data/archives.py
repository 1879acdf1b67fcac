"""Safe unpacking of untrusted zip and tar archives, all files or none.

Every member is looked at before anything is written. Refused are paths that lead elsewhere, links,
devices, names that collide, and contents larger than the limits, whatever the headers claim.
"""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from workloads.errors import UserError

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the latter begins an empty one
_CHUNK = 1 << 20
_LARGEST_READ = 4 << 20
_MOST_PADDING = 64 << 20
_LONGEST_NAME = 255  # bytes of one part of a path, as file systems have it
_LONGEST_PATH = 2048
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # an unknown way of compressing
)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold. A ratio counts only past `ratio_from` bytes unpacked.

    Photographs compress hardly at all and text by a factor of 20; a bomb by 1000 and more.
    """

    total_bytes: int = 256 << 30
    members: int = 2_000_000
    ratio: int = 200
    ratio_from: int = 64 << 20


@dataclass(frozen=True)
class _Member:
    """A file or folder in an archive; `open` is None for a folder."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None] | None


def unpack(archive: Path, target: Path, limits: Limits | None = None) -> list[Path]:
    """Unpack `archive` into the folder `target`; the files written, in the archive's order.

    `archive` is a zip or a tar file (plain, gz, bz2, xz), told by its content. `target` may hold
    other files, but none that the archive brings. Files arrive complete and all together: they are
    written beside `target` first. Modes and owners are not taken over. Raises UserError that names
    the archive and the member for anything refused or damaged, and leaves `target` as it was.
    """
    limits = limits or Limits()
    if os.path.lexists(target) and not target.is_dir():
        raise UserError(f"expected a folder at {target}, found something else; unpack elsewhere")
    with _opened(archive) as members:
        checked = list(_checked(archive, members, limits))
        _refuse_full_disk(archive, target, sum(member.size for member in checked))
        _refuse_collisions(archive, target, checked)
        is_new = not target.exists()
        beside = target.parent if is_new else target
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=beside) as staging:
            content = Path(staging) / "content"
            content.mkdir()
            _write(archive, checked, content)
            if is_new:
                content.rename(target)
            else:
                _move(checked, content, target)
    return [target / member.name for member in checked if member.open is not None]


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member]]:
    """The members of `archive`; damage found at any later point is a UserError as well."""
    try:
        with archive.open("rb") as raw:
            start = raw.read(6)
            raw.seek(0)
            if start.startswith(_ZIP):
                with zipfile.ZipFile(raw) as opened:
                    yield _zip_members(archive, opened)
                return
            with _unpressed(raw, start) as stream, _open_tar(_InPortions(stream)) as opened_tar:
                yield _tar_members(archive, opened_tar, stream)
    except OSError as error:
        if error.errno is not None:  # the machine's trouble, not the archive's
            place = error.filename or archive
            raise UserError(
                f"expected to unpack {archive}, found at {place}: {error.strerror}; fix that first"
            ) from error
        raise _damage(archive, error) from error
    except _DAMAGE as error:
        raise _damage(archive, error) from error


def _damage(archive: Path, error: Exception) -> UserError:
    return UserError(
        f"{archive}: expected a whole zip or tar archive, found: {error}; fetch it again"
    )


def _unpressed(raw: IO[bytes], start: bytes) -> AbstractContextManager[IO[bytes]]:
    """The tar inside gz, bz2 or xz, told by the first bytes."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if start.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMAFile(raw)
    return nullcontext(raw)


def _open_tar(stream: "_InPortions") -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]


class _InPortions:
    """A stream that is never read in one go by more than a header may need.

    tarfile takes extended headers into memory whole, whatever size they claim.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.mode = "rb"
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if size > _LARGEST_READ:
            raise tarfile.HeaderError(f"a header of {size} bytes")
        return self._stream.read(size)


def _zip_members(archive: Path, opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        if info.flag_bits & 0x1:
            raise _refusal(archive, info.filename, "an encrypted file", "unpack it by hand")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refusal(archive, info.filename, _KINDS.get(kind, "a special file"))
        if info.is_dir():
            yield _Member(info.filename, 0, None)
        else:
            yield _Member(info.filename, info.file_size, partial(opened.open, info))


def _tar_members(archive: Path, opened: tarfile.TarFile, stream: IO[bytes]) -> Iterator[_Member]:
    for info in opened:
        if info.isdir():
            yield _Member(info.name, 0, None)
        elif info.isreg() and not info.issparse():
            yield _Member(info.name, info.size, partial(opened.extractfile, info))
        else:
            raise _refusal(archive, info.name, _TAR_KINDS.get(info.type, "a special file"))
    # The checksum of what is compressed stands at its end, behind the padding of the tar.
    padding = 0
    while chunk := stream.read(_CHUNK):
        padding += len(chunk)
        if padding > _MOST_PADDING:
            raise _refusal(archive, "", f"more than {_MOST_PADDING} bytes behind the last member")


_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_TAR_KINDS = {
    tarfile.SYMTYPE: "a link",
    tarfile.LNKTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def _checked(archive: Path, members: Iterator[_Member], limits: Limits) -> Iterator[_Member]:
    """The members with their names made plain; stops at the first that is not to be unpacked."""
    packed = archive.stat().st_size
    total = count = 0
    kinds: dict[str, bool] = {}
    for member in members:
        path = _plain(archive, member.name)
        count, total = count + 1, total + member.size
        _refuse_bomb(archive, member.name, count, total, packed, limits)
        if path is None:
            continue
        is_folder = member.open is None
        _refuse_double(archive, path, is_folder, kinds)
        yield _Member(str(path), member.size, member.open)


def _plain(archive: Path, name: str) -> PurePosixPath | None:
    """`name` as a path below the target; None for the target itself."""
    path = PurePosixPath(name)
    if path.is_absolute() or name.startswith("\\") or name[1:2] == ":":
        raise _refusal(archive, name, "an absolute path")
    if ".." in path.parts or ".." in name.split("\\"):
        raise _refusal(archive, name, "a path with '..'")
    if "\\" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise _refusal(archive, name, "a path with a backslash or control character")
    try:
        lengths = [len(part.encode()) for part in path.parts]
    except UnicodeEncodeError as error:
        raise _refusal(archive, name, "a name that is not UTF-8") from error
    if any(length > _LONGEST_NAME for length in lengths) or sum(lengths) > _LONGEST_PATH:
        raise _refusal(archive, name[:80] + "...", "a name that is too long")
    return path if path.parts else None


def _refuse_bomb(
    archive: Path, name: str, count: int, total: int, packed: int, limits: Limits
) -> None:
    if count > limits.members:
        raise _refusal(archive, name, f"more than {limits.members} members")
    if total > limits.total_bytes:
        raise _refusal(archive, name, f"more than {limits.total_bytes} bytes in all")
    if total > limits.ratio_from and total > limits.ratio * packed:
        raise _refusal(archive, name, f"more than {limits.ratio} times the archive's own size")


def _refuse_double(
    archive: Path, path: PurePosixPath, is_folder: bool, kinds: dict[str, bool]
) -> None:
    """Refuse a file that comes twice, or that is a folder elsewhere in the archive.

    `kinds`: for each path so far, whether it is a folder.
    """
    for parent in reversed(path.parents[:-1]):
        if not kinds.setdefault(str(parent), True):
            raise _refusal(archive, str(path), f"a file below the file {parent}")
    key = str(path)
    if key in kinds and not (is_folder and kinds[key]):
        raise _refusal(archive, str(path), "the same name twice")
    kinds[key] = is_folder


def _refuse_full_disk(archive: Path, target: Path, total: int) -> None:
    existing = next(path for path in (target, *target.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if total > free:
        raise UserError(
            f"expected {total} bytes of room for {archive} in {target}, found {free}; make room"
        )


def _refuse_collisions(archive: Path, target: Path, members: list[_Member]) -> None:
    """Refuse to replace what is there, and to write through a link that is there."""
    for member in members:
        path = target / member.name
        for parent in list(path.relative_to(target).parents)[:-1]:
            if (target / parent).is_symlink() or (target / parent).is_file():
                raise UserError(
                    f"expected a folder at {target / parent} for {archive}, found a link or file; "
                    "unpack elsewhere or remove it"
                )
        there = os.path.lexists(path)
        if there and not (member.open is None and path.is_dir() and not path.is_symlink()):
            raise UserError(
                f"expected room for {member.name} of {archive}, found {path} already there; "
                "unpack elsewhere or remove it"
            )


def _write(archive: Path, members: list[_Member], staging: Path) -> None:
    for member in members:
        path = staging / member.name
        if member.open is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        source = member.open()
        if source is None:
            raise _refusal(archive, member.name, "a member without content")
        with source, path.open("xb") as written:
            _copy(archive, member, source, written)


def _copy(archive: Path, member: _Member, source: IO[bytes], written: IO[bytes]) -> None:
    """Copy as many bytes as the header says; more are a lie, fewer are damage."""
    left = member.size
    while chunk := source.read(min(_CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise _refusal(archive, member.name, f"more than the {member.size} bytes it claims")
        written.write(chunk)
    if left:
        raise UserError(
            f"{archive}: expected {member.size} bytes of {member.name}, found {member.size - left};"
            " fetch the archive again"
        )


def _move(members: list[_Member], staging: Path, target: Path) -> None:
    for member in members:
        path = target / member.name
        if member.open is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / member.name, path)


def _refusal(archive: Path, name: str, found: str, advice: str = "do not trust it") -> UserError:
    return UserError(
        f"{archive}: expected plain files below the target, found {name!r} is {found}; {advice}"
        if not found.startswith("more than")
        else f"{archive}: expected contents within limits, found {found} at {name!r}; {advice}"
    )
