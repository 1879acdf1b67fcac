"""What can be wrong with a vla profile before it starts; `deep` reads every picture."""

from collections.abc import Mapping
from pathlib import Path

from workloads import device
from workloads.engine.hub.publish import may_push
from workloads.errors import UserError
from workloads.findings import Finding
from workloads.plan.estimate import MAY_FIT, estimate
from workloads.vla.config import VlaConfig
from workloads.vla.recipes import fitting_recipe

_GIB = 1 << 30
_MARKS = ("meta/info.json", "features.json", "**/features.json")
_EPISODES = ("**/*.tfrecord", "**/*.npz")


def shallow(config: VlaConfig, env: Mapping[str, str]) -> list[Finding]:
    """Whether the data sets are there, and whether the model can fit the GPUs that are here."""
    found = [_data(source.source) for source in config.data.sources()]
    if config.data.statistics and not Path(config.data.statistics).is_file():
        text = f"{config.data.statistics} does not exist"
        found.append(Finding("data.statistics", "error", text, "correct it, or leave it out"))
    return [*found, *may_push(config), *_memory(config, env)]


def _data(source: str) -> Finding:
    path = Path(source)
    if not path.exists():
        mend = "put the recordings there, or set data.source"
        return Finding("data.source", "error", f"nothing at {source}", mend)
    if path.is_file() or any((path / mark).is_file() for mark in _MARKS[:2]):
        return Finding("data.source", "ok", source)
    known = (one for mark in (*_MARKS[2:], *_EPISODES) for one in path.glob(mark))
    if next(known, None) is None:
        mend = "see tatara data inspect for what can be read"
        return Finding("data.source", "error", f"no demonstrations in {source}", mend)
    return Finding("data.source", "ok", source)


def _memory(config: VlaConfig, env: Mapping[str, str]) -> list[Finding]:
    """An error that names the recipe that fits, where the plan is far beyond the GPU."""
    gpus = device.gpus(env)
    if not gpus:
        return []
    size = min(gpu.total for gpu in gpus)
    planned = estimate(config, len(gpus), env).total
    if planned is None or planned <= MAY_FIT * size:
        return []
    recipe = fitting_recipe(size, config.model.name)
    mend = f"train {recipe}, or set RECIPE=auto" if recipe else "take a larger GPU"
    text = f"{planned / _GIB:.1f} GiB planned, {size / _GIB:.1f} GiB in the GPU"
    return [Finding("memory", "error", text, mend)]


def deep(config: VlaConfig, env: Mapping[str, str]) -> list[Finding]:
    """Open, split and describe the data as training does, and read every picture."""
    from workloads.vla.data.prepare import open_sources

    try:
        cache = Path(env.get("TATARA_CACHE") or ".cache")
        sources = open_sources(config, cache, _no_progress)
    except UserError as error:
        return [Finding("data", "error", str(error))]
    findings = [Finding("data", "ok", line) for line in sources.lines]
    for part in sources.train:
        damage = part.dataset.verify()
        findings += [Finding("damaged record", "warning", str(item)) for item in damage[:20]]
        try:
            part.dataset.report(damage, int(part.dataset.lengths.sum()))
        except UserError as error:
            findings.append(Finding("damaged records", "error", str(error)))
    return findings


def _no_progress() -> None:
    pass
