"""Files of torch.save: any damage is named, nothing in them is run."""

from pathlib import Path, PurePosixPath

import pytest
import torch

from tests.support.zero_shards import flip
from workloads.engine import torch_files
from workloads.engine.torch_files import read_torch_file
from workloads.errors import UserError

pytestmark = pytest.mark.unit


def _saved(file: Path, content: object = None, **options: bool) -> Path:
    torch.save(content or {"a": torch.arange(1000.0), "b": [1, "x"]}, file, **options)
    return file


@pytest.mark.parametrize("record", ["data/0", "data.pkl", "/version"])
def test_a_flipped_bit_in_any_record(record: str, tmp_path: Path) -> None:
    file = _saved(tmp_path / "a.pt")
    assert torch.equal(read_torch_file(file)["a"], torch.arange(1000.0))
    flip(file, record)
    with pytest.raises(UserError, match=rf"a\.pt: expected record .*{record} as it was written"):
        read_torch_file(file)


def test_any_flipped_bit_is_named_or_changes_nothing(tmp_path: Path) -> None:
    """Between records lies padding, which nothing reads."""
    file = _saved(tmp_path / "a.pt", {"a": torch.arange(50.0)})
    whole = file.read_bytes()
    for place in range(0, len(whole), 29):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found = read_torch_file(file)
        except UserError as error:
            assert "a.pt: expected" in str(error)
        else:
            assert torch.equal(found["a"], torch.arange(50.0)), place


def test_files_without_checksums_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    _saved(tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_torch_file(tmp_path / "old.pt", said.append)["b"] == [1, "x"]
    assert len(said) == 1 and "its old form has no checksums" in said[0]
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        _saved(tmp_path / "new.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert read_torch_file(tmp_path / "new.pt", said.append)["b"] == [1, "x"]
    assert len(said) == 2 and "new.pt: written without checksums" in said[1]


def test_large_files_show_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "_SECONDS", -1)
    said: list[str] = []
    read_torch_file(_saved(tmp_path / "a.pt"), said.append)
    assert said and said[-1].endswith("a.pt: compared 0.0 of 0.0 GB")


def test_code_is_named(tmp_path: Path) -> None:
    file = _saved(tmp_path / "a.pt", {"state_dict": {}, "path": PurePosixPath("x")})
    with pytest.raises(UserError, match=r"found pathlib\.PurePosixPath in it, which could run"):
        read_torch_file(file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a file of torch"])
def test_other_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pt: expected a file of torch\.save"):
        read_torch_file(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"b\.pt, found none"):
        read_torch_file(tmp_path / "b.pt")
