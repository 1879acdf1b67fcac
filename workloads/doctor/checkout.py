"""Checks of the checkout: its Compose project, links and mounts, room for images."""

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from workloads.device import GIB
from workloads.doctor.facts import SETUP, Facts
from workloads.findings import Finding, Level
from workloads.host import checkout, selinux
from workloads.host.engine import Engine, is_there
from workloads.host.ports import is_free, is_port

# Measured: the demo's image for CPUs; one with CUDA's libraries, and its layers while it is built.
_ROOM, _ROOM_WITH_CUDA = 5 * GIB, 25 * GIB
_DEPTH = 3  # folders below data/ that are looked into


def checks(facts: Facts) -> list[Finding]:
    """All checks of the checkout; none where no container is to run."""
    if not facts.in_docker:
        return []
    found = [_project(facts), _links(facts), _selinux(facts), _store(facts), _board(facts)]
    return [finding for finding in found if finding is not None]


def _project(facts: Facts) -> Finding:
    """Two checkouts on one engine are two projects; a copied `.env` would make them one."""
    name = facts.env.get("COMPOSE_PROJECT_NAME") or "tatara"
    text = f"{name}, images tagged {facts.env.get('TATARA_TAG') or 'local'}"
    why = checkout.belongs(Path.cwd().resolve())
    if not why:
        return Finding("project", "ok", text)
    if why == checkout.NOT_SET_UP:
        return Finding("project", "skipped", f"{why}: a start does it")
    # Scripts set it up again; `docker compose` by hand refuses.
    return Finding("project", "warning", why, SETUP, "a project of this checkout's own")


def _links(facts: Facts) -> Finding | None:
    """Links below mounted folders to others: a container sees only the link."""
    data = Path(facts.env.get("TATARA_DATA") or "data")
    # Caches hold many links of their own further below.
    looked = {"TATARA_DATA": (data, _DEPTH), "TATARA_OUTPUTS": (facts.outputs, _DEPTH)}
    looked["TATARA_CACHE"] = (facts.cache, 1)
    mounted = [Path(name).resolve() for service in facts.services for name in service.sources]
    mounted += [folder.resolve() for folder, _ in looked.values()] + [Path("profiles").resolve()]
    lost = {
        link: variable
        for variable, (top, depth) in looked.items()
        for link in _links_below(top, depth)
        if not any(link.resolve().is_relative_to(folder) for folder in mounted)
    }
    if not lost:
        return None
    shown = [f"{link} is a link to {os.readlink(link)}" for link in [*lost][:4]]
    text = ", ".join(shown) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
    needed = [link for link in lost if str(link) in facts.asked]
    level: Level = "error" if needed else "warning"
    target = (needed or [*lost])[0]
    variable = lost[target]
    only = ":ro" if variable == "TATARA_DATA" else ""
    fix = (
        f"mount it, with -v {target.resolve()}:/workspace/{target}{only} or in an override of "
        f"compose.yaml; or set {variable} to the folder itself"
    )
    return Finding("links", level, f"{text}, which a container does not see", fix)


def _links_below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir()) if depth else []
    except OSError:
        return
    for path in entries:
        if path.is_symlink():
            yield path
        elif path.is_dir():
            yield from _links_below(path, depth - 1)


def _selinux(facts: Facts) -> Finding | None:
    """What no script labels unasked; a start labels the checkout's own folders."""
    if not selinux.is_enforced(facts.engine):
        return None
    lost = selinux.without_label(selinux.given(facts.env))
    if not lost:
        return Finding("SELinux", "ok", f"enforces; what is mounted is labelled {selinux.LABEL}")
    told = f"enforces, and a container may not read {', '.join(map(str, lost))}"
    fix = f"sudo {shlex.join(selinux.command(lost))}"
    return Finding("SELinux", "error", told, fix, f"labelled {selinux.LABEL}")


def _store(facts: Facts) -> Finding | None:
    """Free disk where the engine keeps images, which may differ from that of outputs/."""
    if not isinstance(facts.engine, Engine) or not facts.engine.root:
        return None
    root = Path(facts.engine.root)
    if not root.is_dir():
        return Finding("image store", "skipped", f"{root} is not on this machine")
    free = shutil.disk_usage(root).free
    found = f"{free / GIB:.1f} GiB free in {root}"
    images = [service.image for service in facts.services]
    if images and all(is_there(image, facts.env) for image in dict.fromkeys(images)):
        room, why = GIB, "for a rebuild; the image is there"
    elif facts.needs_gpu:
        room, why = _ROOM_WITH_CUDA, "to build an image with CUDA"
    else:
        room, why = _ROOM, "to build the image"
    needed = f"{room // GIB} GiB {why}"
    if free >= room:
        return Finding("image store", "ok", found, needed=needed)
    fix = "docker system df shows what is in it; tatara prune and docker image prune free some"
    return Finding("image store", "error" if free < GIB else "warning", found, fix, needed)


def _board(facts: Facts) -> Finding | None:
    """The port of TensorBoard, where it does not run yet."""
    port = facts.env.get("BOARD_PORT") or "6006"
    if facts.profile is not None or not is_port(port) or is_free(int(port), "127.0.0.1"):
        return None
    text = f"port {port} of 127.0.0.1 is taken: by TensorBoard already, or by another program"
    return Finding("TensorBoard", "warning", text, "BOARD_PORT=6007 in .env, if it is another")
