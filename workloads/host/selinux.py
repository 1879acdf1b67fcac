"""SELinux: where it enforces, a container may use only files that carry its label.

Compose's own `selinux: z` does not reach mounts that must exist already, which ours must. Scripts
label what a checkout has for its containers before each start. Data, and files that a variable
names, are not relabelled unasked: the doctor names them.
"""

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from workloads.environment import CA_NAMES
from workloads.errors import UserError
from workloads.host.engine import Engine
from workloads.host.programs import run_program

LABEL = "container_file_t"
_READABLE = (LABEL, "container_ro_file_t", "svirt_sandbox_file_t")
# Of file systems without labels of their own: a boolean of the policy decides (virt_use_nfs).
_BY_BOOLEAN = ("nfs_t", "cifs_t", "fusefs_t")
_ENFORCE = Path("/sys/fs/selinux/enforce")
_MOST = 1000  # entries of a folder that are looked at
_SECRET_FILES = (
    "HF_TOKEN_FILE",
    "WANDB_API_KEY_FILE",
    "TATARA_SERVE_TOKEN_FILE",
    "TATARA_RENDEZVOUS_SECRET_FILE",
)


def is_enforced(engine: Engine | str) -> bool:
    """Whether the kernel enforces, and the engine has its containers labelled."""
    if not _ENFORCE.is_file() or _ENFORCE.read_text().strip() != "1":
        return False
    return isinstance(engine, Engine) and any("selinux" in option for option in engine.security)


def own(env: Mapping[str, str]) -> list[Path]:
    """What a checkout has for its containers alone."""
    named = (env.get("TATARA_OUTPUTS") or "outputs", env.get("TATARA_CACHE") or ".cache")
    return [Path(name) for name in dict.fromkeys((*named, "profiles", ".env", ".cache"))]


def given(env: Mapping[str, str]) -> list[Path]:
    """What the user has put elsewhere for containers to read."""
    files = [env.get(name) for name in (*_SECRET_FILES, "TATARA_CA_FILE", *CA_NAMES)]
    return [Path(env.get("TATARA_DATA") or "data"), *(Path(name) for name in files if name)]


def without_label(paths: Iterable[Path]) -> list[Path]:
    """Those that a container may not read, or whose first entries it may not."""
    return [path for path in dict.fromkeys(paths) if path.exists() and not _is_readable(path)]


def _is_readable(path: Path) -> bool:
    inside = sorted(path.iterdir())[:_MOST] if path.is_dir() else []
    return all(_may_be_read(label_of(item)) for item in (path, *inside) if not item.is_symlink())


def _may_be_read(label: str) -> bool:
    """A label is user:role:type:level; categories in the level are one container's own."""
    parts = label.split(":")
    kind = parts[2] if len(parts) > 2 else ""
    return kind in _BY_BOOLEAN or (kind in _READABLE and parts[3:] in ([], ["s0"]))


def label_of(path: Path) -> str:
    """A file's SELinux label; empty where it has none."""
    try:
        return os.getxattr(path, "security.selinux").decode(errors="replace").rstrip("\0")
    except OSError:
        return ""


def command(paths: Iterable[Path]) -> list[str]:
    """What labels files, and all below them, for every container."""
    return ["chcon", "-R", "-t", LABEL, "-l", "s0", *map(str, paths)]


def label(paths: Iterable[Path], env: Mapping[str, str]) -> None:
    """Label what has no label for containers yet; UserError where the caller may not."""
    lost = without_label(paths)
    if lost and not (done := run_program(command(lost), env, seconds=600)).is_good:
        raise UserError(
            f"expected to label {', '.join(map(str, lost))} for containers, which SELinux asks "
            f"for, found: {done.problem}; run: sudo {shlex.join(command(lost))}"
        )
