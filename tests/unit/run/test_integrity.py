"""Checkpoints are whole or do not count."""

import json
import shutil
from pathlib import Path

import pytest

from workloads.run import integrity, verify_checkpoint

pytestmark = pytest.mark.unit


def make(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (path / "shards" / "0.distcp").write_bytes(b"shard" * 100)
    integrity.seal(path, {"step": step})
    return path


def test_a_sealed_checkpoint_is_whole(tmp_path: Path) -> None:
    path = make(tmp_path, 10)
    assert verify_checkpoint(path) == []
    record = json.loads((path / "complete.json").read_text())
    assert set(record["files"]) == {"model.safetensors", "shards/0.distcp"}
    assert record["files"]["shards/0.distcp"]["size"] == 500


@pytest.mark.parametrize(
    ("of_folder", "of_files"), [(0o755, 0o644), (0o770, 0o660), (0o700, 0o600)]
)
def test_files_get_the_rights_of_their_folder(
    tmp_path: Path, of_folder: int, of_files: int
) -> None:
    """safetensors writes weights for the owner alone: a colleague could not load the model."""
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "model.safetensors").chmod(0o600)
    tmp_path.chmod(of_folder)
    integrity.seal(tmp_path, {"step": 1})
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == of_files
    assert verify_checkpoint(tmp_path) == []


@pytest.mark.parametrize("name", ["model.safetensors", "shards/0.distcp"])
@pytest.mark.parametrize("offset", [0, 17, -1])
def test_one_flipped_bit_is_found_and_named(tmp_path: Path, name: str, offset: int) -> None:
    path = make(tmp_path, 10)
    content = bytearray((path / name).read_bytes())
    content[offset] ^= 1
    (path / name).write_bytes(content)
    (damage,) = verify_checkpoint(path)
    assert name in damage and "digest" in damage


def test_truncated_missing_and_unsealed_are_told_apart(tmp_path: Path) -> None:
    path = make(tmp_path, 10)
    (path / "model.safetensors").write_bytes(b"short")
    (path / "shards" / "0.distcp").unlink()
    damage = verify_checkpoint(path)
    assert "expected 10240 bytes, found 5" in damage[0]
    assert "missing" in damage[1]
    (path / "complete.json").write_text("{")
    assert "unreadable" in verify_checkpoint(path)[0]
    (path / "complete.json").unlink()
    assert "never finished" in verify_checkpoint(path)[0]


def test_the_newest_whole_one_is_taken_and_the_damaged_one_set_aside(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        make(tmp_path, step)
    (tmp_path / "checkpoint-100" / "model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoint-200").mkdir()
    told: list[str] = []
    assert integrity.newest_whole(tmp_path, told.append) == tmp_path / "checkpoint-10"
    assert (tmp_path / "damaged-checkpoint-100").is_dir()
    assert len(told) == 1 and "checkpoint-100" in told[0]
    assert integrity.newest_whole(tmp_path / "nothing", told.append) is None


def test_rotation_goes_by_number_and_keeps_the_best(tmp_path: Path) -> None:
    for step in (9, 10, 100, 1000):
        make(tmp_path, step)
    gone = integrity.rotate(tmp_path, keep_last=2, best=tmp_path / "checkpoint-9")
    assert [path.name for path in gone] == ["checkpoint-10"]
    assert [path.name for path in integrity.sealed(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-100",
        "checkpoint-1000",
    ]


def test_what_cannot_be_deleted_is_told_and_the_rest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-3: a link is removed as a link, what a cut left behind goes too."""
    for step in (3, 6, 9, 12):
        make(tmp_path / "run", step)
    folder = tmp_path / "run"
    moved = tmp_path / "elsewhere"
    (folder / "checkpoint-3").rename(moved)
    (folder / "checkpoint-3").symlink_to(moved)
    (folder / "checkpoint-4").mkdir()  # its seal is gone, as after a deletion that was cut short
    (folder / "damaged-checkpoint-5").mkdir()  # E-15
    (folder / "replaced-checkpoint-12").mkdir()
    real = shutil.rmtree

    def rmtree(path: Path, *args: object, **kwargs: object) -> None:
        if path.name == "checkpoint-6":
            raise PermissionError(13, "Permission denied")
        real(path)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    told: list[str] = []
    integrity.rotate(folder, keep_last=1, best=None, report=told.append)
    assert told == ["checkpoint-6 cannot be deleted: Permission denied"]
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["checkpoint-12", "checkpoint-6", "replaced-checkpoint-12"]
    assert (moved / "complete.json").is_file()
    monkeypatch.undo()
    integrity.rotate(folder, keep_last=1, best=None, report=told.append)
    assert not (folder / "checkpoint-6").exists() and len(told) == 1


def test_a_name_is_never_written_twice(tmp_path: Path) -> None:
    first = make(tmp_path, 10)
    before = (first / "model.safetensors").read_bytes()
    staged = make(tmp_path / "staging", 10)
    (staged / "model.safetensors").write_bytes(b"other")
    integrity.publish(staged, first)
    assert (tmp_path / "replaced-checkpoint-10" / "model.safetensors").read_bytes() == before
    assert (first / "model.safetensors").read_bytes() == b"other"


def test_a_flipped_bit_anywhere_in_the_seal_is_found(tmp_path: Path) -> None:
    path = make(tmp_path, 10)
    whole = (path / "complete.json").read_bytes()
    for offset in range(len(whole)):
        content = bytearray(whole)
        content[offset] ^= 1
        (path / "complete.json").write_bytes(content)
        (damage,) = verify_checkpoint(path)
        assert damage.startswith("complete.json: "), (offset, damage)
