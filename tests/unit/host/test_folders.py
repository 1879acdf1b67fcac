"""Folders that a run writes to: who may write, and cures that fit the cause (O-A12)."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from workloads.errors import UserError
from workloads.host import folders
from workloads.host.folders import check_writable, how_to_write, may_write

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "expected"),
    [
        (0o755, 4001, 4001, False),
        (0o775, 4001, os.getgid(), True),
        (0o755, 4001, os.getgid(), False),
        (0o757, 4001, 4001, True),
        (0o500, 0, 0, True),
        (0o755, os.getuid(), os.getgid(), True),
    ],
)
def test_who_may_write_a_folder(
    tmp_path: Path, mode: int, uid: int, gid: int, expected: bool
) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir(mode=0o700)
    os.chown(folder, os.getuid(), os.getgid())
    folder.chmod(mode)
    assert may_write(folder, uid, gid) is expected


def test_the_cure_fits_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my runs"
    folder.mkdir()
    owner = folder.stat().st_uid
    assert how_to_write([folder], owner + 1, 7) == f"sudo chown -R {owner + 1}:7 '{folder}'"
    assert how_to_write([folder], owner, 7).startswith(f"chmod -R u+rwX '{folder}'; where that")
    fixed = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(folders.os, "statvfs", lambda place: fixed)
    assert "for writing, or name others with TATARA_OUTPUTS" in how_to_write([folder], 0, 0)


def test_what_stands_in_a_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "disk/runs")
    check_writable([tmp_path / "new" / "below"], 1, 1)
    with pytest.raises(UserError, match="file to be a folder, found a file; move it away"):
        check_writable([tmp_path / "file" / "below"], 1, 1)
    with pytest.raises(UserError, match="lost to be a folder, found a link to .*/disk/runs, which"):
        check_writable([tmp_path / "lost"], 1, 1)


def test_a_folder_of_somebody_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "may_write", lambda *who: False)
    with pytest.raises(
        UserError, match="that you can write, found one of uid .*; sudo chown -R 4:5"
    ):
        check_writable([tmp_path], 4, 5)
