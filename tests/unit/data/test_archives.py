"""Archives that lead elsewhere, lie or explode are refused, and leave nothing behind."""

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from workloads.data.archives import Limits, unpack
from workloads.errors import UserError

pytestmark = pytest.mark.unit

FILES = {"images/a.png": b"a" * 3000, "images/deep/b.png": os.urandom(1_200_000), "c.txt": b""}
Edit = Callable[[tarfile.TarInfo], object]


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            add(archive, name, content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **changes: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(archive: Path, target: Path, message: str, limits: Limits | None = None) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        unpack(archive, target, limits)
    assert archive.name in str(refusal.value)
    assert not target.exists()
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_whole_archives(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "some.archive"  # told by its content, not by its name
    if kind == "zip":
        make_zip(archive)
    else:
        make_tar(archive, mode="w:" + kind.partition(".")[2])
    target = tmp_path / "new" / "target"
    assert unpack(archive, target) == [target / name for name in FILES]
    assert contents(target) == FILES


def test_a_folder_with_other_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "target" / "images").mkdir(parents=True)
    (tmp_path / "target" / "test.jsonl").write_bytes(b"{}")
    unpack(make_zip(tmp_path / "a.zip"), tmp_path / "target")
    assert contents(tmp_path / "target") == {**FILES, "test.jsonl": b"{}"}
    assert not [path for path in (tmp_path / "target").iterdir() if path.name.startswith(".")]


def test_nothing_there_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "images").mkdir(parents=True)
    (target / "images" / "a.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"a\.png already there"):
        unpack(make_zip(tmp_path / "a.zip"), target)
    assert contents(target) == {"images/a.png": b"mine"}


def test_links_in_the_target_are_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "images").symlink_to(elsewhere)
    with pytest.raises(UserError, match="found a link or file"):
        unpack(make_zip(tmp_path / "a.zip"), tmp_path / "target")
    assert not contents(elsewhere)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "an absolute path"),
        ("../outside", "with '..'"),
        ("images/../../outside", "with '..'"),
        ("C:\\Windows\\x", "an absolute path"),
        ("\\\\server\\x", "an absolute path"),
        ("a\\..\\..\\x", "with '..'"),
        ("a\\b", "a backslash"),
        ("a\nb", "control character"),
        ("x" * 300, "too long"),
        ("/".join(["abcdefgh"] * 300), "too long"),
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str, message: str) -> None:
    files = {"ok.txt": b"ok", name: b"bad"}
    refused(make_zip(tmp_path / "a.zip", files), tmp_path / "target", message)
    refused(make_tar(tmp_path / "a.tar", files), tmp_path / "target", message)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (b"Z", "a special file"),
    ],
)
def test_tar_members_that_are_no_files(tmp_path: Path, kind: bytes, message: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "ok.txt", b"ok")
        add(archive, "bad", type=kind, linkname="/etc/passwd")
    refused(tmp_path / "a.tar", tmp_path / "target", message)


@pytest.mark.parametrize(
    ("kind", "message"), [(stat.S_IFLNK, "a link"), (stat.S_IFBLK, "a device")]
)
def test_zip_members_that_are_no_files(tmp_path: Path, kind: int, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("bad")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", tmp_path / "target", message)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "a"], "same name twice"), (["a", "a/b"], "below the file"), (["a/b", "a"], "twice")],
)
def test_names_that_collide(tmp_path: Path, names: list[str], message: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            add(archive, name, b"x")
    refused(tmp_path / "a.tar", tmp_path / "target", message)


def test_modes_are_not_taken_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "folder", type=tarfile.DIRTYPE, mode=0)
        add(archive, "folder/x", b"x", mode=0o6777, uid=4242)
    unpack(tmp_path / "a.tar", tmp_path / "target")
    found = (tmp_path / "target" / "folder" / "x").stat()
    assert found.st_mode & 0o7111 == 0 and found.st_uid == os.getuid()


def test_bombs(tmp_path: Path) -> None:
    zeros = {"zeros": bytes(3_000_000)}
    for archive in (
        make_zip(tmp_path / "a.zip", zeros),
        make_tar(tmp_path / "a.tgz", zeros, mode="w:gz"),
    ):
        target = tmp_path / "target"
        refused(archive, target, "200 times", Limits(ratio_from=1_000_000))
        refused(archive, target, "2000000 bytes in all", Limits(total_bytes=2_000_000))
    many = make_zip(tmp_path / "many.zip", {str(number): b"" for number in range(30)})
    refused(many, tmp_path / "target", "more than 20 members", Limits(members=20))


def test_a_bomb_is_found_before_it_is_unpacked(tmp_path: Path) -> None:
    """A header that claims 8 PB is refused on sight, whatever follows it."""
    archive = tmp_path / "a.tar"
    info = tarfile.TarInfo("huge")
    info.size = 8 << 50
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    refused(archive, tmp_path / "target", "bytes in all")


def test_headers_are_not_taken_into_memory_whatever_their_size(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 64 << 30
    archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(archive, tmp_path / "target", "a header of 68719476736 bytes")


def test_a_zip_that_claims_too_little(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": bytes(5000)})
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    refused(archive, tmp_path / "target", "expected a whole zip or tar archive")


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz", ""])
def test_damage(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "some.archive"
    make_zip(archive) if kind == "zip" else make_tar(archive, mode=f"w:{kind}")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    refused(archive, tmp_path / "target", "expected")
    middle = len(whole) // 2
    if kind:  # a plain tar has no checksums of its contents
        archive.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
        refused(archive, tmp_path / "target", "expected a whole zip or tar archive")


def test_what_is_no_archive(tmp_path: Path) -> None:
    text = tmp_path / "a.zip"
    text.write_text("<html>404</html>" * 100)
    refused(text, tmp_path / "target", "expected a whole zip or tar archive")
    text.write_bytes(b"")
    refused(text, tmp_path / "target", "expected a whole zip or tar archive")
    with pytest.raises(UserError, match="No such file"):
        unpack(tmp_path / "gone.zip", tmp_path / "target")


def test_an_encrypted_zip(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": b"secret"})
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)
    refused(archive, tmp_path / "target", "encrypted")


def test_a_zip_inside_a_tar_is_a_member(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip").read_bytes()
    unpack(make_tar(tmp_path / "a.tar", {"inner.zip": inner}), tmp_path / "target")
    assert contents(tmp_path / "target") == {"inner.zip": inner}


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(make_zip(tmp_path / "a.zip"), tmp_path / "target", "bytes of room.* found 1000000")


def test_a_bomb_behind_the_last_member(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    plain = make_tar(tmp_path / "a.tar", {"x": b"x"}).read_bytes()
    archive.write_bytes(gzip.compress(plain + bytes(70 << 20), compresslevel=1))
    refused(archive, tmp_path / "target", "bytes behind the last member")
