"""The machine that bench/gpu/run.sh finds: what it lacks, what is read-only, what is in use."""

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.gpu import _machine, _players, run
from tests.support.gpu_parts import result

pytestmark = pytest.mark.unit

GIB = 1 << 30


@pytest.fixture
def no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "installed", lambda bundle, work: None)
    for name in (*run.WRITTEN, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_nothing_is_written_below_a_home_that_may_be_read_only(
    no_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HOME stays, whose cache may hold kernels; what a person has set stays, too."""
    monkeypatch.setenv("TRITON_CACHE_DIR", "/data/triton")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("HF_HOME", raising=False)
    env = run.environment("cuda", no_bundle)
    for name in set(run.WRITTEN) - {"TRITON_CACHE_DIR"}:
        assert env[name].startswith(str(no_bundle))
    assert env["TRITON_CACHE_DIR"] == "/data/triton" and "HF_HOME" not in env
    # Each part would compile all packages of the bundle again.
    assert "PYTHONDONTWRITEBYTECODE" not in env and "TMPDIR" not in env


def test_temporary_files_have_a_place_where_tmp_cannot_be_written(
    no_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", os.getcwd)  # Python's last choice
    env = run.environment("cuda", no_bundle)
    assert env["TMPDIR"] == str(no_bundle / "tmp") and Path(env["TMPDIR"]).is_dir()


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocators_settings_stay_by_either_name(
    name: str, no_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.environment("cuda", no_bundle)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv(name, "expandable_segments:False")
    env = run.environment("cuda", no_bundle)
    assert env[name] == "expandable_segments:False"
    assert "expandable_segments:True" not in (env.get("PYTORCH_ALLOC_CONF"), env[name])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 12080). Please update",
            "found version 12080",
        ),
        (None, "CUDA_VISIBLE_DEVICES=7"),
    ],
)
def test_why_torch_uses_no_gpu_is_said(
    said: str | None, expected: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def init() -> None:
        if said:
            raise RuntimeError(f"{said}\nmore lines")

    monkeypatch.setattr(sys, "argv", ["-c", "cuda"])
    monkeypatch.setattr(_machine, "version", lambda name: "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(SystemExit) as left:
        _machine.report()
    told = capsys.readouterr().err
    assert left.value.code == 2 and expected in told and "more lines" not in told


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("CUDA error: no kernel image is available for execution on the device", "sm_75, sm_90"),
        ("CUDA driver error: operation not supported", "expandable_segments:False"),
    ],
)
def test_a_gpu_that_does_not_compute_is_named_with_what_helps(
    error: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A V100 has no code in builds for CUDA 13; virtual GPUs map no memory in parts."""

    def ones(*words: Any, **more: Any) -> Any:
        raise torch.AcceleratorError(error, 209)

    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    with pytest.raises(SystemExit):
        _machine._compute()
    assert expected in capsys.readouterr().err


def test_what_makes_some_parts_fail_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton needs a compiler and Python's header; bitsandbytes one library of CUDA's major."""
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(_machine.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(_machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(_machine.sysconfig, "get_path", lambda *words: str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.1")
    monkeypatch.delenv("CC", raising=False)
    first, second = _machine.lacking()
    assert f"found no compiler and no {tmp_path / 'Python.h'}: Triton" in first
    assert "bitsandbytes has no library for CUDA 13" in second
    (tmp_path / "Python.h").touch()
    (package / "libbitsandbytes_cuda130.so").touch()
    monkeypatch.setattr(_machine.shutil, "which", lambda name: "/usr/bin/gcc")
    assert _machine.lacking() == []


def test_a_part_waits_until_the_one_before_has_given_its_memory_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = [10 * GIB, 40 * GIB, 79 * GIB]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free.pop(0), 80 * GIB))
    monkeypatch.setattr(_machine.time, "sleep", lambda seconds: None)
    assert _machine.wait_for_memory() == "" and not free
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * GIB, 80 * GIB))
    clock = iter(range(100))
    monkeypatch.setattr(_machine.time, "monotonic", lambda: next(clock))
    assert _machine.wait_for_memory() == "20.0 of 80.0 GiB of the GPU are in use"
    assert next(clock) < 12  # what others hold for good is waited for seconds


def test_half_a_result_is_none(tmp_path: Path) -> None:
    """As a full disk leaves it: the part is run again, and the summary stands."""
    place = run.Place(tmp_path, "cpu")
    place.results.mkdir(parents=True)
    place.result("card").write_text(json.dumps(result()))
    place.result("train").write_text('{"status": "pas')
    found = run.summary(place.results, "cpu")
    assert list(found["parts"]) == ["card"] and found["left"][0] == "train"
    assert [run._is_done(part, place) for part in run.PARTS[:3]] == [True, False, False]


def test_what_is_whole_in_a_cut_archive_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy that was broken off."""
    source = tmp_path / "results"
    source.mkdir()
    for name in ("card", "train"):
        (source / f"{name}.json").write_text(json.dumps(result(noise=os.urandom(20_000).hex())))
    (source / "nan.json").write_text('{"status": "pas')
    archive, cut = tmp_path / "results.tar.gz", tmp_path / "cut.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        for name in ("nan", "card", "train"):
            made.add(source / f"{name}.json", arcname=f"results/{name}.json")
    whole = archive.read_bytes()
    cut.write_bytes(whole[: len(whole) * 3 // 4])
    place = run.Place(tmp_path, "cpu")
    place.results.mkdir(parents=True)
    run._take_over(cut, place)
    assert [path.name for path in place.results.iterdir()] == ["card.json"]
    assert "is cut" in capsys.readouterr().out
    run._take_over(archive, place)
    assert {path.name for path in place.results.iterdir()} == {"card.json", "train.json"}
    cut.write_bytes(whole[:100])
    with pytest.raises(run.Refused, match="expected the results.tar.gz of an earlier call"):
        run._take_over(cut, place)


def test_a_disk_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*words: Any) -> None:
        raise OSError(38, "Function not implemented")

    place = run.Place(tmp_path, "cpu")
    place.results.mkdir(parents=True)
    monkeypatch.setattr(run.fcntl, "flock", refuse)
    with run._alone(place):
        assert "no lock in" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["0", "-3", "nan", "soon"])
def test_a_budget_is_seconds(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run.main(["--budget", given])
    assert left.value.code == 2 and "--budget" in capsys.readouterr().err


def test_ours_plays_before_and_after_the_others() -> None:
    """A-B-A; losses are compared once all have played, and a side that fails costs only itself."""
    played: list[str] = []

    def side(name: str, answer: Any) -> Any:
        def play() -> Any:
            played.append(name)
            player.problem = "" if answer else "out of memory"
            return answer

        player = SimpleNamespace(name=name, problem="", turns=[], play=play, end=lambda: None)
        return player

    compared: list[dict[str, Any]] = []
    sides = [side("ours", 7), side("TRL", None), side("by hand", 9)]
    turns, problems = _players.play_around(sides, compared.append, lambda turns: None)
    assert played == ["ours", "TRL", "by hand", "ours"]
    assert turns == {"ours": [7, 7], "TRL": [], "by hand": [9]}
    assert compared == [{"ours": 7, "by hand": 9}] and problems == {"TRL": "out of memory"}
    alone = [side("ours", None), side("TRL", 3)]
    turns, _ = _players.play_around(alone, compared.append, lambda turns: None)
    assert turns == {"ours": [], "TRL": [3]} and len(compared) == 1
