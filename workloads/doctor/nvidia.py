"""NVIDIA's driver and cards by `nvidia-smi`, and what a CUDA build of torch needs.

Sources: NVIDIA, "CUDA Compatibility" (oldest driver of a CUDA major version) and "CUDA Toolkit
Release Notes" (the driver that came with each); PyTorch, RELEASE.md, "CUDA support matrix" (compute
capabilities in the binaries, from 2.11 on).
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from workloads.device import MIB
from workloads.host.programs import ProgramResult, run_program

Version = tuple[int, ...]

# CUDA major version → oldest driver that runs it at all.
OLDEST_DRIVER: Mapping[int, Version] = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580,)}
# CUDA version → the driver that came with it; older ones of the same major run it in part.
OWN_DRIVER: Mapping[Version, Version] = {
    (11, 8): (520, 61, 5),
    (12, 1): (530, 30, 2),
    (12, 4): (550, 54, 14),
    (12, 6): (560, 28, 3),
    (12, 8): (570, 26),
    (12, 9): (575, 51, 3),
    (13, 0): (580, 65, 6),
}
# From this CUDA on → compute capabilities that torch's binaries hold code for.
_CAPABILITIES: Mapping[Version, tuple[Version, ...]] = {
    (0, 0): ((5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)),
    (12, 8): ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)),
}
# The build of torch 2.13 on the package index.
USUAL_CUDA: Version = (13, 0)
# The newest build that still runs Pascal, Volta, and drivers from 525.60.13 on.
OLD_INDEX = "TORCH_INDEX_URL=…/whl/cu126"

# For drivers that do not report it: patterns of card names, the first match counts.
_BY_NAME = (
    (r"\bP100\b|\bP40\b|GTX 10", (6, 0)),
    (r"\bV100|TITAN V\b|GV100", (7, 0)),
    (r"\bT4\b|RTX 20|GTX 16|Quadro RTX", (7, 5)),
    (r"\bA100|\bA30\b", (8, 0)),
    (r"\bA10G?\b|\bA40\b|\bA16\b|RTX 30|RTX A\d000", (8, 6)),
    (r"RTX 40|\bL4\b|\bL40S?\b|Ada", (8, 9)),
    (r"\bH100|\bH200|\bH800|GH200", (9, 0)),
    (r"\bB100|\bB200|GB200", (10, 0)),
    (r"RTX 50|Blackwell", (12, 0)),
)


@dataclass(frozen=True)
class InstalledCard:
    """One NVIDIA card; memory in bytes; None for what neither driver nor name tells."""

    index: int
    uuid: str
    name: str
    memory: int | None
    capability: tuple[int, int] | None


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi answers: the driver and the cards, or the problem.

    slices: parts of cards that MIG has made, where CUDA_VISIBLE_DEVICES names some.
    """

    driver: str = ""
    cards: tuple[InstalledCard, ...] = ()
    problem: str = ""
    slices: tuple[InstalledCard, ...] = ()


@dataclass(frozen=True)
class Build:
    """The CUDA that torch is, or will be, built for; None for the CPU build.

    `source`: who states it.
    """

    cuda: Version | None
    source: str


def numbers(text: str) -> Version:
    """A version as numbers to compare: `525.105.17` → (525, 105, 17), `2.26.1-4` → (2, 26, 1)."""
    found = re.match(r"\D*(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def dotted(version: Version) -> str:
    """A driver's version as NVIDIA writes it: (450, 80, 2) → `450.80.02`."""
    return ".".join([str(version[0]), *(f"{part:02d}" for part in version[1:])])


def smi(env: Mapping[str, str]) -> Smi:
    """Ask nvidia-smi; a driver too old for one of the questions is asked without it."""
    fields = "index,uuid,name,driver_version,memory.total,compute_cap"
    answer = _query(fields, env)
    if answer.code is None:
        return Smi(problem=answer.problem)
    found = _from_rows(answer.out)
    if not found.cards:
        found = _from_rows(_query(fields.rpartition(",")[0], env).out)
    if not found.cards:
        # One that knows no queries may still print its table.
        answer = run_program(["nvidia-smi"], env, seconds=30)
        found = _from_table(answer.out)
    if found.cards:
        names_slices = "MIG-" in env.get("CUDA_VISIBLE_DEVICES", "")
        return replace(found, slices=_slices(env)) if names_slices else found
    text = answer.problem or _first_line(answer.out) or "nothing"
    return Smi(driver=found.driver, problem=f"nvidia-smi says: {text}")


def _query(fields: str, env: Mapping[str, str]) -> ProgramResult:
    words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return run_program(words, env, seconds=30)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _from_rows(text: str) -> Smi:
    """Cards by the rows of a query; other lines are left out."""
    cards, driver = [], ""
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) not in (5, 6) or not parts[0].isdecimal() or not numbers(parts[3]):
            continue
        driver = parts[3]
        memory = int(parts[4]) * MIB if parts[4].isdecimal() else None
        version = numbers(parts[5]) if len(parts) == 6 else ()
        capability = (version[0], version[1]) if len(version) == 2 else _by_name(parts[2])
        cards.append(InstalledCard(int(parts[0]), parts[1], parts[2], memory, capability))
    return Smi(driver, tuple(cards))


def _from_table(text: str) -> Smi:
    """The table that nvidia-smi prints unasked: for each card a row of its name, one of memory."""
    driver = re.search(r"Driver Version:\s*([\d.]+)", text)
    names = re.findall(r"^\|\s+(\d+)\s+(\S.*?)\s+(?:On|Off|N/A)\s+\|", text, re.MULTILINE)
    sizes = [int(size) * MIB for size in re.findall(r"\d+MiB\s*/\s*(\d+)MiB", text)]
    cards = [
        InstalledCard(
            int(index), "", name, sizes[place] if place < len(sizes) else None, _by_name(name)
        )
        for place, (index, name) in enumerate(names)
    ]
    return Smi(driver[1] if driver else "", tuple(cards))


def _by_name(name: str) -> tuple[int, int] | None:
    return next((found for part, found in _BY_NAME if re.search(part, name)), None)


def visible(
    cards: tuple[InstalledCard, ...],
    wanted: str | None,
    slices: tuple[InstalledCard, ...] = (),
) -> tuple[InstalledCard, ...]:
    """CUDA's rule for CUDA_VISIBLE_DEVICES: in its order, up to the first that names no card.

    slices: parts of cards that MIG has made, which are named by their UUID.
    """
    if wanted is None:
        return cards
    chosen: list[InstalledCard] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.startswith("MIG-"):  # a process sees one slice, and nothing beside it
            return tuple(card for card in slices if card.uuid == entry)
        named = [card for card in cards if entry in (str(card.index), card.uuid)]
        named = named or [card for card in cards if entry and card.uuid.startswith(entry)]
        if len(named) != 1:
            break
        chosen.append(named[0])
    return tuple(chosen)


def _slices(env: Mapping[str, str]) -> tuple[InstalledCard, ...]:
    """All parts of cards that MIG has made, by `nvidia-smi -L`, which tells no memory of them."""
    found: list[InstalledCard] = []
    index, name = 0, ""
    for line in run_program(["nvidia-smi", "-L"], env, seconds=30).out.splitlines():
        if card := re.match(r"GPU (\d+): (.+?) \(UUID: ", line):
            index, name = int(card[1]), card[2]
        elif part := re.match(r"\s+(MIG \S+)\s.*\(UUID: (MIG-[^)]+)\)", line):
            whole = f"{name} {part[1]}"
            found.append(InstalledCard(index, part[2], whole, None, _by_name(name)))
    return tuple(found)


def on_the_bus(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether an NVIDIA card is plugged in, driver or not."""
    for vendor in devices.glob("*/vendor"):
        try:
            kind = (vendor.parent / "class").read_text()
            if vendor.read_text().strip() == "0x10de" and kind.startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def no_p2p(
    env: Mapping[str, str], cards: tuple[InstalledCard, ...]
) -> list[tuple[int, int]] | None:
    """Pairs of these cards without P2P access; None where unknown."""
    answer = run_program(["nvidia-smi", "topo", "-p2p", "r"], env, seconds=30)
    text = re.sub(r"\x1b\[[\d;]*m", "", answer.out)
    rows = {
        int(found[1]): found[2].split()
        for found in re.finditer(r"^\s*GPU(\d+)\s+((?:(?!GPU)\S+[ \t]*)+)$", text, re.MULTILINE)
    }
    wanted = [card.index for card in cards]
    if not answer.is_good or any(index not in rows for index in wanted):
        return None
    pairs = [(a, b) for a in wanted for b in wanted if a < b]
    return [(a, b) for a, b in pairs if b >= len(rows[a]) or rows[a][b] != "OK"]


def is_served(capability: tuple[int, int], cuda: Version) -> bool:
    """Whether a build of torch holds code for a card: same major, a minor not above its own."""
    held = _CAPABILITIES[max(since for since in _CAPABILITIES if since <= cuda[:2])]
    return any(major == capability[0] and minor <= capability[1] for major, minor in held)


def served(cuda: Version) -> str:
    """The compute capabilities of a CUDA build as text."""
    held = _CAPABILITIES[max(since for since in _CAPABILITIES if since <= cuda[:2])]
    return ", ".join(f"{major}.{minor}" for major, minor in held)


def oldest_driver(cuda: Version) -> Version:
    """The oldest driver for a CUDA version; of a major version not known here, the newest known."""
    return OLDEST_DRIVER.get(cuda[0], OLDEST_DRIVER[max(OLDEST_DRIVER)])


def build_of_index(url: str) -> Build | None:
    """The build that a torch index holds, by its last part: cu128, cu130, cpu."""
    name = url.rstrip("/").rpartition("/")[2]
    source = f"TORCH_INDEX_URL ends in {name}"
    if name == "cpu":
        return Build(None, source)
    found = re.fullmatch(r"cu(\d\d)(\d)", name)
    return Build((int(found[1]), int(found[2])), source) if found else None


def build_in(text: str, source: str) -> Build | None:
    """The build according to torch's own version.py."""
    found = re.search(r"^cuda\b[^=\n]*=\s*(?:['\"]([\d.]+)['\"]|None)", text, re.MULTILINE)
    if found is None:
        return None
    return Build(numbers(found[1]) if found[1] else None, source)


def installed_build() -> Build | None:
    """The build of the torch beside this Python, without loading it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    file = Path(spec.origin).with_name("version.py")
    return build_in(file.read_text(), "the torch installed here") if file.is_file() else None
