"""Puts the bundle's packages into a folder of their own. Standard library alone, without pip: a
wheel is an archive of what stands among a Python's packages, and nobody calls their scripts here.
"""

import json
import platform
import shutil
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

FACTS = "bundle.json"
# The bundle's wheels hold libraries for these processors.
MACHINE = "x86_64"


class Refused(Exception):
    """What keeps a call from beginning: expected X, found Y; do Z."""


def digest(path: Path) -> str:
    """SHA-256 of a file as wheels write it: base64 for URLs, without padding."""
    return urlsafe_b64encode(sha256(path.read_bytes()).digest()).decode().rstrip("=")


def installed(bundle: Path, work: Path) -> Path | None:
    """The folder of the bundle's packages, made once a bundle; None where none can be used here.

    Raises Refused for a bundle that is damaged or not whole.
    """
    if not bundle.is_dir():
        print(f"no {bundle.name}: this Python's own packages are taken")
        return None
    facts = _facts(bundle)
    here = ".".join(platform.python_version_tuple()[:2])
    if (facts["python"], MACHINE) != (here, platform.machine()):
        print(
            f"{bundle.name} is for Python {facts['python']} on {MACHINE}, this is {here} on "
            f"{platform.machine()}: its packages are left out; make gpu-bundle PYTHON={here}"
        )
        return None
    site = work / f"site-{here}"
    text = json.dumps(facts)
    if (site / FACTS).is_file() and (site / FACTS).read_text(encoding="utf-8") == text:
        return site
    print(f"installing {len(facts['wheels'])} packages from {bundle.name}", flush=True)
    new = site.with_suffix(".new")
    for folder in (new, site):
        shutil.rmtree(folder, ignore_errors=True)
    for name, wheel in facts["wheels"].items():
        _unpack(bundle / "wheels" / name, wheel, new)
    (new / FACTS).write_text(text, encoding="utf-8")
    new.rename(site)
    return site


def _facts(bundle: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((bundle / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(
            f"expected {bundle.name}/{FACTS} as `make gpu-bundle` writes it, found none to read "
            f"({error}); make the bundle again, or remove it to take this Python's packages"
        ) from error
    return facts


def _unpack(wheel: Path, facts: Mapping[str, Any], site: Path) -> None:
    """Unpack a wheel whose content is what the bundle names."""
    if not wheel.is_file() or digest(wheel) != facts["sha256"]:
        found = "another file of that name" if wheel.is_file() else "none"
        raise Refused(
            f"expected {wheel.name} in {wheel.parent.parent.name}/wheels, as the bundle was made, "
            f"found {found}; copy the bundle again"
        )
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            first, _, rest = entry.filename.partition("/")
            if not first.endswith(".data"):
                archive.extract(entry, site)
            elif rest.startswith(("purelib/", "platlib/")):
                entry.filename = rest.partition("/")[2]
                archive.extract(entry, site)


def unmet(site: Path) -> list[str]:
    """What the installed packages ask for and this Python has not, or in another version."""
    from importlib import metadata

    from packaging.requirements import Requirement

    told = []
    for name, lines in _facts(site)["requires"].items():
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            try:
                here = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                here = "none"
            if here == "none" or not requirement.specifier.contains(here, prereleases=True):
                told.append(f"{name} asks for {requirement.name}{requirement.specifier}, "
                            f"found {here}")  # fmt: skip
    return told
