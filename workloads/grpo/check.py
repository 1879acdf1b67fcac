"""Checks of a grpo profile before training; `deep` counts the tokens of every row."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.check import world_size
from workloads.engine.hub.publish import may_push
from workloads.engine.pretrained.files import local_model
from workloads.environment import cache_folder
from workloads.errors import TataraError, UserError
from workloads.findings import Finding, Level
from workloads.grpo.config import GENERATED, GrpoConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from workloads.engine.pretrained.base import Base
    from workloads.grpo.data.prepare import Counting


def shallow(config: GrpoConfig, env: Mapping[str, str]) -> list[Finding]:
    """Whether batch, rewards, engine and the files that the profile names fit together."""
    looks = [*_groups(config, env), *_rewards(config), _engine(config), _data(config)]
    return [*looks, *local_model(config), *may_push(config)]


def _groups(config: GrpoConfig, env: Mapping[str, str]) -> list[Finding]:
    """Whether a step holds whole groups; an indivisible batch is found by the shared checks."""
    world = world_size(config, env)
    try:
        config.accumulation_steps(world)
    except UserError:
        return []
    if config.stage == "sft":
        return [Finding("batch", "ok", "the supervised stage has no groups")]
    try:
        config.check_groups(world)
    except UserError as error:
        return [Finding("batch", "error", str(error))]
    prompts, group = config.prompts_a_step(world), config.grpo.num_generations
    found = f"{prompts} prompts x {group} completions a step, {world} ranks"
    return [Finding("batch", "ok", found)]


def _rewards(config: GrpoConfig) -> list[Finding]:
    """Check names only: a plug-in's module is imported at the start of a run, not here."""
    from workloads.grpo.rewards.scoring import is_known, unknown_reward

    findings = []
    for reward in config.rewards.functions:
        if not is_known(reward.name):
            findings.append(Finding("rewards", "error", unknown_reward(reward.name)))
    names = ", ".join(
        f"{function.weight:g} x {function.name}" for function in config.rewards.functions
    )
    return findings or [Finding("rewards", "ok", names or "the environment's own")]


def _engine(config: GrpoConfig) -> Finding:
    engine = config.generation.engine
    if config.stage == "sft" or engine == "transformers":
        return Finding("generation", "ok", "transformers")
    if importlib.util.find_spec("vllm") is None:
        return Finding(
            "generation",
            "error",
            f"{engine} needs the package vllm, which is not installed here",
            "use the image of grpo-h100, or set generation.engine=transformers",
        )
    return Finding("generation", "ok", engine)


def _data(config: GrpoConfig) -> Finding:
    from workloads.engine.pretrained.files import is_local

    source = config.data.source
    if source == GENERATED:
        return Finding("data.source", "ok", f"{config.data.scenes.count:,} scenes, drawn")
    if not is_local(source):
        return Finding("data.source", "ok", f"{source} on the hub")
    if not Path(source).expanduser().exists():
        return Finding("data.source", "error", f"{source} does not exist", "correct the path")
    return Finding("data.source", "ok", source)


def deep(config: GrpoConfig, env: Mapping[str, str]) -> list[Finding]:
    """Count text and image tokens of every row against the limits; name the rows that break."""
    from workloads.engine.pretrained.base import find_base
    from workloads.grpo.data.prepare import count, read_source, try_on
    from workloads.grpo.data.remarks import describe_images, describe_solutions
    from workloads.grpo.model import check_options

    reported: list[str] = []
    try:
        base = find_base(config.model, reported.append, weights=False)
        check_options(base.config, config)
        found = read_source(config.data, cache_folder(env))
        counted = count(config, base.folder, found.rows)
        useless = try_on(config, found.rows[0])
    except TataraError as error:
        return [Finding("rows", "error", str(error))]
    tokens = counted.report
    findings = [Finding("model", "ok", line) for line in reported]
    findings += [Finding("bad row", "warning", str(row)) for row in found.bad]
    findings += [Finding("rewards", "warning", line) for line in useless]
    findings += [Finding("rows", "ok", note) for note in found.notes]
    findings += [Finding("solutions", "warning", line) for line in describe_solutions(found.rows)]
    findings += [Finding("images", "warning", line) for line in describe_images(found.rows, 2000)]
    level: Level = "warning" if config.data.too_long == "drop" else "error"
    findings += [Finding("row", level, line) for line in tokens.broken]
    findings.append(Finding("rows", "ok", f"{tokens.rows - len(tokens.broken):,} fit the limits"))
    if tokens.longest is not None:
        findings.append(
            Finding("longest prompt", "ok", f"{tokens.longest} at {tokens.longest.place}")
        )
    return [*findings, _compared(config, base, counted)]


def _compared(config: GrpoConfig, base: "Base[PreTrainedConfig]", counted: "Counting") -> Finding:
    """Compare a few rows with the model's processor, whose packages may be missing here."""
    from workloads.grpo.check_counts import prove, sample_of
    from workloads.grpo.data.prepare import turns_of
    from workloads.grpo.model import load_processing
    from workloads.grpo.tools import load_tools

    try:
        processing = load_processing(base, config.grpo, config.tools.used)
    except TataraError as error:
        # What a library cannot do here it may do in the image; the rest would end a training too.
        level: Level = "error" if error.__cause__ is None else "warning"
        return Finding("tokens", level, f"not compared with the model's own processor: {error}")
    try:
        tools = load_tools(config.tools, bool(config.rewards.functions))
        tools.check(processing)
        switches, turns = config.model.chat_template_kwargs, turns_of(config.data)
        done = prove(sample_of(counted.good), processing, turns, tools.schemas, switches)
    except TataraError as error:
        return Finding("tokens", "error", str(error))
    return Finding("tokens", "ok", f"as the model's own processor counts them, in {done} rows")
