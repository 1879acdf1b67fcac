"""What a GPU machine without a network lacks, in one folder: `make gpu-bundle`.

    python -m bench.gpu.bundle --python 3.12

Wheels of exactly the versions that the images' locks name, checked by their hashes, for the Python
of that machine. torch and what comes with it are expected there, since nobody carries gigabytes;
bench/gpu/run.sh says which of them are not. Tokenizers and rows are in the tree, in data/demo.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from bench._pair import ROOT
from bench.gpu._install import FACTS, digest

MOST = 45 * 10**6
LOCKS = ("demo", "llm-4090", "vla")
# What the run imports beside what is expected; their own requirements follow from their metadata.
WANTED = (
    "trl",
    "datasets",
    "math-verify",
    "google-crc32c",
    "zstandard",
    "sentencepiece",
    "pydantic",
    "python-dotenv",
    "pyyaml",
    "psutil",
    "nvidia-ml-py",
    "rich",
    "shtab",
    "liger-kernel",
    "bitsandbytes",
)
# On every machine that people train on: torch, its CUDA libraries, transformers and their needs.
EXPECTED = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "jinja2",
    "fsspec",
    "filelock",
    "packaging",
    "tqdm",
    "requests",
    "httpx",
    "regex",
    "sympy",
    "matplotlib",
    "tensorboard",
)
# Libraries of other CUDA versions and makers are five sixths of bitsandbytes.
LEFT_OUT = re.compile(r"bitsandbytes/libbitsandbytes_(rocm|xpu|cuda1[12])\w*\.so")
# pip matches the number of a manylinux platform exactly, and packages name many.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (5, 12, 17, 24, 26, 27, 28, 31, 34)]
PLATFORMS += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]


def main() -> int:
    """Write the bundle and say what is in it; 2 where it would be larger than may be carried."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="3.12", help="Python of the GPU machine, such as 3.12")
    parser.add_argument("--folder", type=Path, default=ROOT / ".gpu-bundle")
    options = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", options.python):
        print(f"--python: expected a version such as 3.12, found {options.python}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        wheels = Path(name)
        missing = collect(wheels, options.python)
        if missing:
            return 2
        size = sum(path.stat().st_size for path in wheels.iterdir())
        if size > MOST:
            print(
                f"expected wheels of at most {MOST / 1e6:.0f} MB, found {size / 1e6:.1f} MB; take "
                "something out of WANTED in bench/gpu/bundle.py",
                file=sys.stderr,
            )
            return 2
        _write(wheels, options.folder, options.python, size)
    return 0


def collect(wheels: Path, python: str) -> list[str]:
    """Fetch what is wanted and what that needs in turn; the names that could not be fetched."""
    locked = _locked()
    seen: set[str] = set()
    wanted = set(WANTED)
    while new := wanted - seen - set(EXPECTED):
        if unknown := sorted(new - set(locked)):
            print(f"expected {unknown[0]} in the images' locks, found none", file=sys.stderr)
            return unknown
        if not _download([locked[name] for name in sorted(new)], wheels, python):
            return sorted(new)
        seen |= new
        wanted |= {need for path in wheels.iterdir() for need in needs(path, python)}
    for path in wheels.glob("bitsandbytes-*.whl"):
        slim(path)
    return []


def _locked() -> dict[str, str]:
    """Each package's entry in the locks, with its hashes; one package has one version in all."""
    entries = {}
    for name in LOCKS:
        text = (ROOT / "images" / name / "requirements.lock").read_text(encoding="utf-8")
        for entry in re.split(r"\n(?=[a-z0-9])", text):
            entries[entry.partition("==")[0]] = entry
    return entries


def _download(entries: list[str], wheels: Path, python: str) -> bool:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lock:
        lock.write("\n".join(entries) + "\n")
        lock.flush()
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--require-hashes"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        return not subprocess.call([*command, *platforms, "-d", str(wheels), "-r", lock.name])


def needs(wheel: Path, python: str) -> Iterator[str]:
    """Names of the packages that a wheel requires on Linux with this Python, without extras."""
    there = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "extra": "",
    }
    for line in metadata(wheel).get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(there):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower()


def metadata(wheel: Path) -> Any:
    """A wheel's own METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        inner = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(inner).decode())


def slim(wheel: Path) -> None:
    """Take out of a wheel the libraries that no machine with CUDA 13 loads, and from its record."""
    small = wheel.with_suffix(".small")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if LEFT_OUT.fullmatch(entry.filename):
                continue
            if entry.filename.endswith(".dist-info/RECORD"):
                rows = content.decode().splitlines()
                kept = [row for row in rows if not LEFT_OUT.fullmatch(row.partition(",")[0])]
                content = ("\n".join(kept) + "\n").encode()
            new.writestr(entry, content)
    small.replace(wheel)


def _write(wheels: Path, folder: Path, python: str, size: int) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(wheels, folder / "wheels")
    found = {}
    for path in sorted(wheels.iterdir()):
        found[path.name] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    facts = {"python": python, "bytes": size, "wheels": found, "expected": list(EXPECTED)}
    facts["requires"] = {
        metadata(path)["Name"]: metadata(path).get_all("Requires-Dist", [])
        for path in sorted(wheels.iterdir())
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(f"{folder}: {len(found)} wheels for Python {python}, {size / 1e6:.1f} MB")
    print(f"expected on the machine: {', '.join(EXPECTED)}")


if __name__ == "__main__":
    sys.exit(main())
