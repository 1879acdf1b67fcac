"""Checks of a vla profile before training; `deep` reads every image."""

from collections.abc import Mapping
from pathlib import Path

from workloads import device
from workloads.device import GIB
from workloads.engine.hub.publish import may_push
from workloads.engine.keep_best import keep_best
from workloads.engine.pretrained.files import local_model
from workloads.engine.warm_up import warm_up
from workloads.environment import cache_folder
from workloads.errors import UserError
from workloads.findings import Finding
from workloads.plan.estimate import MAY_FIT, estimate
from workloads.plan.recipes import fitting_recipe, recipes_of
from workloads.vla.config import VlaConfig

_WITH_RECIPES = Path("profiles/vla.yaml")
_MOST = 20  # lines of damage shown


def shallow(config: VlaConfig, env: Mapping[str, str]) -> list[Finding]:
    """Whether the datasets are there, and whether the model can fit the GPUs that are here."""
    lost = config.data.missing_datasets()
    found = [Finding("data.mixture", "error", lost)] if lost else []
    found += [_data(source.source) for source in config.data.sources() if lost is None]
    if config.data.statistics and not Path(config.data.statistics).is_file():
        text = f"{config.data.statistics} does not exist"
        found.append(Finding("data.statistics", "error", text, "correct it, or leave it out"))
    return [
        *found,
        *keep_best(config, config.evaluation.every_steps),
        *warm_up(config),
        *local_model(config),
        *may_push(config),
        *_memory(config, env),
    ]


def _data(source: str) -> Finding:
    """Whether the path exists; `deep` opens it."""
    from workloads.data.robot.opening import is_hub_name

    path = Path(source)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        return Finding("data.source", "ok", source)
    if path.is_dir():
        fix = "put the recordings there, or set data.source"
        return Finding("data.source", "error", f"no demonstrations in {source}", fix)
    if is_hub_name(source):
        return Finding("data.source", "ok", f"{source} on the hub: downloaded when it is opened")
    fix = "put the recordings there, or set data.source"
    return Finding("data.source", "error", f"nothing at {source}", fix)


def _memory(config: VlaConfig, env: Mapping[str, str]) -> list[Finding]:
    """An error that names a fitting recipe, if the plan is far beyond the GPU."""
    gpus = device.gpus(env)
    if not gpus:
        return []
    size = min(gpu.total for gpu in gpus)
    planned = estimate(config, len(gpus), env).total
    if planned is None or planned <= MAY_FIT * size:
        return []
    recipe = fitting_recipe(size, config.recipes or recipes_of(_WITH_RECIPES), config.model.name)
    fix = f"train {recipe}, or set RECIPE=auto" if recipe else "take a larger GPU"
    text = f"{planned / GIB:.1f} GiB planned, {size / GIB:.1f} GiB in the GPU"
    return [Finding("memory", "error", text, fix)]


def deep(config: VlaConfig, env: Mapping[str, str]) -> list[Finding]:
    """Open, split and describe the data as training does, and read every image."""
    from workloads.data.robot.review import remarks
    from workloads.data.tfrecord import summed_up
    from workloads.vla.data.prepare import open_sources

    try:
        cache = cache_folder(env)
        sources = open_sources(config, cache, lambda: None)
    except UserError as error:
        return [Finding("data", "error", str(error))]
    findings = [Finding("data", "ok", line) for line in sources.lines]
    samples = sum(part.weight * len(part.places) for part in sources.train)
    findings += warm_up(config, round(samples))
    for part in sources.train:
        findings += [
            Finding("data", remark.level, remark.text, remark.fix)
            for remark in remarks(part.dataset)
        ]
        damage = part.dataset.verify()
        findings += [
            Finding("damaged record", "warning", line) for line in summed_up(damage)[:_MOST]
        ]
        try:
            part.dataset.report(damage)
        except UserError as error:
            findings.append(Finding("damaged records", "error", str(error)))
    return findings
