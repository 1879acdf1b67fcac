"""Finds the model that a user names: a run's exported one, a folder, or a name on the hub."""

import json
from collections.abc import Collection
from pathlib import Path

from workloads.errors import UserError
from workloads.run.directory import Run, find


def exported_model(wanted: str, root: Path, *workloads: str) -> tuple[str, Run | None]:
    """The model's folder or hub name, and its run, None for a model without one.

    wanted: a run's folder, what `named` takes, or `latest`, the newest run of the workloads, whose
    `final/` is meant; or a model's folder or name on the hub. root: where the runs are. Raises
    UserError where nothing of that name is there.
    """
    folder = Path(wanted).expanduser()
    places = [path for path in (folder, root / wanted) if (path / "manifest.json").is_file()]
    if not wanted.strip():
        raise UserError(
            "expected a run or a model, found an empty name; `latest` is the newest run"
        )
    if folder.is_file():
        raise UserError(
            f"expected a run or a model's folder, found the file {wanted}; name its folder"
        )
    may_be_on_hub = wanted.count("/") == 1 and not wanted.startswith((".", "/", "~"))
    is_hub_name = may_be_on_hub and not (root / wanted).parent.is_dir()
    if not places and (folder.is_dir() or is_hub_name):
        return wanted, _run_of(folder)
    if places:
        run = Run(places[0])
    elif wanted == "latest":
        run = _newest(root, workloads)
    else:
        try:
            run = find(root, "*", wanted)
        except UserError as error:
            raise UserError(f"{error} (a model is named by its folder, or OWNER/NAME)") from None
    return str(final_of(run)), run


def final_of(run: Run) -> Path:
    """The exported model of a run; UserError where there is none."""
    if not run.final.is_dir():
        raise UserError(
            f"{run.path}: expected an exported model in final/, found none; run tatara export "
            f"{run.path}"
        )
    return run.final


def _run_of(folder: Path) -> Run | None:
    """The run whose `final/` a folder is."""
    run = Run(folder.parent)
    return run if folder.name == run.final.name and (run.path / "manifest.json").is_file() else None


def _newest(root: Path, workloads: Collection[str]) -> Run:
    dumps = sorted(root.glob("*/*/config.json"), key=lambda path: (path.stat().st_mtime_ns, path))
    for path in reversed(dumps):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if (found.get("config") or {}).get("workload") in workloads:
            return Run(path.parent)
    names = " or ".join(workloads)
    raise UserError(f"expected a run of the {names} workload in {root}, found none; train one")
