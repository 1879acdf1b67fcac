"""The settings of a run: their sections, their order of precedence, and where each came from.

default < profile < environment < command line. `resolve()` is the only place that merges them.
"""

import importlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from workloads.catalogue import WORKLOADS
from workloads.config import deepspeed
from workloads.config.sections import Profile, Section
from workloads.config.yaml_source import (
    load_mapping,
    mark_of,
    parse_scalar,
    text_of,
    value_of,
    wide_marks,
)
from workloads.errors import UserError, did_you_mean
from workloads.json_files import read_json

# Names people already use, in `.env` (upper case) and as flags (--lower_case). A profile lists the
# ones it honours under `honours`; the launch contract is honoured by every profile.
SHORT_NAMES = {
    "MODEL_NAME": "model.name",
    "BATCH_SIZE": "train.per_device_batch_size",
    "LEARNING_RATE": "optim.learning_rate",
    "MAX_EPOCHS": "train.epochs",
    "NUM_EPOCHS": "train.epochs",
    "MAX_STEPS": "train.max_steps",
    "SEED": "train.seed",
    "LORA_RANK": "adapter.r",
    "GRADIENT_CHECKPOINTING": "train.gradient_checkpointing",
    "USE_WANDB": "tracking.wandb",
    "WANDB_PROJECT": "tracking.wandb_project",
    "WANDB_PROJECT_NAME": "tracking.wandb_project",
    "WANDB_ENTITY": "tracking.wandb_entity",
    "HUB_MODEL_ID": "export.hub_model_id",
    "PUSH_TO_HUB": "export.push",
}
CONTRACT = {
    "NNODES": "parallel.nodes",
    "NPROC_PER_NODE": "parallel.ranks_per_node",
    "MASTER_PORT": "parallel.master_port",
}
# Flags and settings of other trainers whose last word is none of ours, and what they are here.
ELSEWHERE = {
    "attn_implementation": "model.attention=…",
    "per_device_train_batch_size": "train.per_device_batch_size=…",
    "gradient_accumulation_steps": "train.global_batch_size=…, of which it follows",
    "report_to": "tracking.wandb=online or tracking.tensorboard=true",
    "num_train_epochs": "train.epochs=…",
    "model_name_or_path": "model.name=…",
    "dataset_name": "data.source=…",
    "save_steps": "checkpoints.every_steps=…",
    "logging_steps": "train.log_every=…",
    "eval_steps": "evaluation.every_steps=…",
    "max_seq_length": "data.max_length=…",
    "fp16": "train.precision=fp16",
    "bf16": "train.precision=bf16",
    "torch_dtype": "train.precision=bf16, fp16 or fp32",
    "use_flash_attention": "nothing: it is taken where it works; model.attention=… asks for it",
    "use_qlora": "adapter.method=qlora",
    "qlora_4bit": "adapter.method=qlora adapter.quantisation=nf4, or int8",
    "load_in_4bit": "adapter.method=qlora",
    "load_in_8bit": "adapter.method=qlora adapter.quantisation=int8",
    "lora_alpha": "adapter.alpha=…",
    "lora_dropout": "adapter.dropout=…",
    "target_modules": "adapter.targets=[…]",
    "use_deepspeed": "parallel.strategy=zero2 or zero3",
    "device_map": "parallel.strategy=fsdp2, which shares the weights between GPUs",
    "max_memory": "parallel.strategy=fsdp2, which shares the weights between GPUs",
    "max_memory_per_gpu": "parallel.strategy=fsdp2, which shares the weights between GPUs",
}
PREFIX = "TATARA__"
# How a value is told that follows from the way to train.
BY_METHOD = "default of adapter.method="
_TYPE = re.compile(r"\W|^(int|float|str|bool)$")
_SHOULD = "Input should be "


class Provenance(dict[str, str]):
    """Dotted setting → where its value came from; `ignored` lists names set but not honoured."""

    def __init__(self, sources: Mapping[str, str], ignored: Iterable[str] = ()) -> None:
        super().__init__(sources)
        self.ignored = tuple(ignored)


@dataclass
class _Layers:
    """The merged values while they are collected, with the source of each."""

    schema: type[Profile]
    file: str
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[tuple[str | int, ...], str] = field(default_factory=dict)
    groups: dict[tuple[str | int, ...], str] = field(default_factory=dict)

    def set(self, path: tuple[str, ...], value: Any, source: str) -> None:
        here = self.values
        for part in path[:-1]:
            inner = here.get(part)
            here[part] = dict(inner) if isinstance(inner, dict) else {}
            here = here[part]
        here[path[-1]] = value
        for known in [known for known in self.sources if known[: len(path)] == path]:
            del self.sources[known]
        self.sources[path] = source


def resolve(
    profile_path: str | os.PathLike[str],
    env: Mapping[str, str],
    overrides: Sequence[str] | Mapping[str, Any] = (),
) -> tuple[Any, Provenance]:
    """Merge a profile, the environment and the command line into one frozen config.

    overrides: words such as `optim.learning_rate=1e-5`, `--batch_size 16` and `--use_wandb`, or a
    mapping of dotted name to value. Returns the workload's config and its provenance. Raises
    UserError with the place of the mistake and the nearest valid name.
    """
    chain = _profile_chain(Path(profile_path))
    layers = _Layers(_schema_of(chain), chain[-1][1])
    layers.set(("name",), Path(profile_path).stem, "file name of the profile")
    for node, file in chain:
        _take_mapping(layers, node, file, layers.schema, ())
    honoured = _honoured(layers)
    ignored = _take_environment(layers, env, honoured)
    for name, value, source in _overrides(overrides, honoured, layers.schema):
        _take_word(layers, name, value, source)
    _take_learning_rate(layers)
    return _validated(layers, ignored)


def _profile_chain(path: Path) -> list[tuple[yaml.MappingNode, str]]:
    """The profile after the ones that it extends, the outermost first."""
    chain: list[tuple[yaml.MappingNode, str]] = []
    seen: list[Path] = []
    name = str(path)
    while True:
        if path.resolve() in seen:
            raise UserError(f"{name}: extends itself; remove one `extends`")
        seen.append(path.resolve())
        node = load_mapping(path, name)
        chain.insert(0, (node, name))
        base = next((value for key, value in node.value if key.value == "extends"), None)
        if base is None:
            return chain
        path = path.parent / str(value_of(base))
        name = os.path.relpath(path) if not Path(name).is_absolute() else str(path)


def _schema_of(chain: list[tuple[yaml.MappingNode, str]]) -> type[Profile]:
    found = None
    for node, file in chain:
        for key, value in node.value:
            if key.value == "workload":
                found = (str(value_of(value)), mark_of(value, file))
    if found is None:
        raise UserError(
            f"{chain[-1][1]}:1:1: `workload` is missing; add one of: {', '.join(WORKLOADS)}"
        )
    workload, mark = found
    if workload not in WORKLOADS:
        raise UserError(
            f"{mark}: unknown workload {workload!r}; {did_you_mean(workload, WORKLOADS)}"
        )
    try:
        return _schema(workload)
    except UserError as error:
        raise UserError(f"{mark}: {error}") from None


def _schema(workload: str) -> type[Profile]:
    # Imported only when a profile names it, so that no workload loads another.
    module, _, name = WORKLOADS[workload].schema.partition(":")
    try:
        schema: type[Profile] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise UserError(f"workload {workload!r} is not part of this version") from error
    return schema


def _honoured(layers: _Layers) -> list[str]:
    """The short names that the profile lists; each must be one."""
    names = layers.values.get("honours") or []
    place = layers.sources.get(("honours",), layers.file)
    if not isinstance(names, list):
        raise UserError(f"{place}: honours expects a list of short names, found {names!r}")
    for number, name in enumerate(names):
        if name not in SHORT_NAMES:
            where = layers.sources.get(("honours", number), place)
            raise UserError(
                f"{where}: unknown short name {name!r}; {did_you_mean(name, SHORT_NAMES)}"
            )
    return names


def _section(schema: type[Section], name: str) -> type[Section] | None:
    annotation = schema.model_fields[name].annotation
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def _is_text(schema: type[Section], name: str) -> bool:
    """Whether a setting is text and nothing else, so that what is written is what is meant."""
    return _plain_types(schema.model_fields[name].annotation) == {str}


def _plain_types(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Annotated:
        return _plain_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _plain_types(part)}
    return {annotation} - {NoneType}


def _take_mapping(
    layers: _Layers, node: yaml.Node, file: str, schema: type[Section], path: tuple[str, ...]
) -> None:
    if not isinstance(node, yaml.MappingNode):
        # A mark has the whole text, as that is composed from one.
        wide = wide_marks(str(node.start_mark and node.start_mark.buffer))
        place = mark_of(node, file)
        raise UserError(f"{place}: {'.'.join(path)} expects a mapping of settings{wide}")
    for key, value in node.value:
        mark = mark_of(key, file)
        name = str(key.value)
        if not path and name == "extends":
            continue
        if name not in schema.model_fields:
            full = ".".join((*path, name))
            near = did_you_mean(name, schema.model_fields)
            if name in ELSEWHERE:
                near = f"write {ELSEWHERE[name]}"
            raise UserError(f"{mark}: unknown setting {full!r}; {near}")
        inner = _section(schema, name)
        if inner is not None and inner.list_field and isinstance(value, yaml.SequenceNode):
            layers.set((*path, name, inner.list_field), value_of(value), str(mark_of(value, file)))
            _remember_inner(layers, value, file, (*path, name, inner.list_field))
            continue
        if inner is not None:
            layers.groups[(*path, name)] = str(mark)
            _take_mapping(layers, value, file, inner, (*path, name))
            continue
        read = text_of if _is_text(schema, name) else value_of
        layers.set((*path, name), read(value), str(mark_of(value, file)))
        _remember_inner(layers, value, file, (*path, name))


def _remember_inner(
    layers: _Layers, node: yaml.Node, file: str, path: tuple[str | int, ...]
) -> None:
    """Note the places inside a list or a free mapping, so that an error can point there."""
    inner: list[tuple[str | int, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        inner = [(str(key.value), value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = list(enumerate(node.value))
    for part, value in inner:
        layers.sources[(*path, part)] = str(mark_of(value, file))
        _remember_inner(layers, value, file, (*path, part))


def _take_environment(
    layers: _Layers, env: Mapping[str, str], honoured: Sequence[str]
) -> list[str]:
    """Take the short names first and the exact `TATARA__…` names over them."""
    ignored = []
    for name, dotted in (SHORT_NAMES | CONTRACT).items():
        # Compose hands an unset variable over as an empty one.
        if not env.get(name):
            continue
        if name in CONTRACT or name in honoured:
            _take_word(layers, dotted, env[name], f"environment {name}")
        else:
            ignored.append(name)
    for name in sorted(env):
        if name.startswith(PREFIX) and env[name]:
            dotted = name[len(PREFIX) :].lower().replace("__", ".")
            _take_word(layers, dotted, env[name], f"environment {name}")
    return ignored


def _take_learning_rate(layers: _Layers) -> None:
    """The method's own learning rate, where nothing else has set one."""
    default = layers.schema.model_fields["adapter"].default.method
    method = layers.values.get("adapter", {}).get("method", default)
    rates = layers.schema.learning_rates
    if ("optim", "learning_rate") not in layers.sources and str(method) in rates:
        layers.set(("optim", "learning_rate"), rates[str(method)], f"{BY_METHOD}{method}")


def _overrides(
    overrides: Sequence[str] | Mapping[str, Any], honoured: Sequence[str], schema: type[Profile]
) -> list[tuple[str, Any, str]]:
    """What the command line says, as (dotted name, value, source)."""
    if isinstance(overrides, Mapping):
        return [(name, value, f"command line {name}") for name, value in overrides.items()]
    found = []
    left = list(overrides)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if not equals and not argument.startswith("--"):
            raise UserError(
                f"command line: expected NAME=VALUE or --name VALUE, found {argument!r}"
            )
        if not equals:
            is_switch = not left or left[0].startswith("--") or "=" in left[0]
            value = "true" if is_switch else left.pop(0)
        if name == "--deepspeed":
            source = f"command line --deepspeed {value}"
            settings = deepspeed.settings_of(Path(value))
            found += [(setting, value, source) for setting, value in settings.items()]
            continue
        found.append((_long_name(name, honoured, schema), value, f"command line {name}"))
    return found


def _long_name(name: str, honoured: Sequence[str], schema: type[Profile]) -> str:
    if not name.startswith("--"):
        return name
    bare = name[2:].replace("-", "_")
    short = SHORT_NAMES | CONTRACT
    if "." in bare:
        return bare
    if bare.upper() in honoured or bare.upper() in CONTRACT:
        return short[bare.upper()]
    if bare.upper() in short:
        raise UserError(
            f"command line: this profile does not honour {name}; write {short[bare.upper()]}=… "
            f"or add {bare.upper()} to its `honours`"
        )
    flags = [f"--{known.lower()}" for known in (*honoured, *CONTRACT)]
    near = _near_setting(schema, None, bare) or did_you_mean(name, flags)
    raise UserError(f"command line: unknown flag {name!r}; {near}")


def setting_names(schema: type[Section], prefix: str = "") -> list[str]:
    """The dotted names of every setting of a schema."""
    names = []
    for name in schema.model_fields:
        inner = _section(schema, name)
        if inner is None:
            names.append(f"{prefix}{name}")
        else:
            names += setting_names(inner, f"{prefix}{name}.")
    return names


def _near_setting(schema: type[Profile], group: type[Section] | None, name: str) -> str:
    """What may be meant by a name that no setting has: what it is called here, one whose last word
    or initials it is, else the nearest of its group; empty where there is none."""
    if name in ELSEWHERE:
        return f"write {ELSEWHERE[name]}"
    same = []
    for dotted in setting_names(schema):
        last = dotted.rpartition(".")[2]
        if name in (last, "".join(part[:1] for part in last.split("_"))):
            same.append(dotted)
    if same:
        return f"did you mean {' or '.join(f'{dotted}=…' for dotted in same[:3])}?"
    return did_you_mean(name, group.model_fields) if group else ""


def _take_word(layers: _Layers, dotted: str, value: Any, source: str) -> None:
    path = tuple(dotted.split("."))
    schema: type[Section] = layers.schema
    if path == ("workload",):
        raise UserError(f"{source}: the workload belongs to the profile; take another profile")
    for depth, part in enumerate(path):
        if part not in schema.model_fields:
            near = _near_setting(layers.schema, schema, part)
            raise UserError(f"{source}: unknown setting {dotted!r}; {near}")
        inner = _section(schema, part)
        last = depth == len(path) - 1
        if inner is not None and last and inner.list_field:
            path, last, schema = (*path, inner.list_field), False, inner
            as_written = _is_text(inner, inner.list_field)
            break
        if inner is not None and last:
            raise UserError(f"{source}: {dotted!r} is a group of settings; name one inside it")
        if inner is None:
            annotation = schema.model_fields[part].annotation
            if not last and get_origin(annotation) is not dict:
                raise UserError(f"{source}: {'.'.join(path[: depth + 1])!r} has nothing inside it")
            as_written = not last or _is_text(schema, part)
            break
        schema = inner
    is_value = not isinstance(value, str) or (as_written and value != "null")
    layers.set(path, value if is_value else parse_scalar(value, source), source)


def _validated(layers: _Layers, ignored: list[str]) -> tuple[Any, Provenance]:
    try:
        config = layers.schema.model_validate(layers.values)
    except ValidationError as error:
        together: dict[tuple[str | int, ...], list[Any]] = {}
        for problem in error.errors():
            together.setdefault(_path_of(problem), []).append(problem)
        problems = [_problem(layers, path, alike) for path, alike in together.items()]
        raise UserError("\n".join(problems)) from None
    sources = {}
    for path in leaves(config):
        parts = tuple(path.split("."))
        source = _source(layers, parts) or "default"
        inner = [text for known, text in layers.sources.items() if known[: len(parts)] == parts]
        outside = [text for text in inner if text.startswith(("environment ", "command line "))]
        sources[path] = ", ".join(dict.fromkeys([source, *outside]))
    return config, Provenance(sources, ignored)


def _source(layers: _Layers, path: tuple[str | int, ...]) -> str | None:
    for length in range(len(path), 0, -1):
        if path[:length] in layers.sources:
            return layers.sources[path[:length]]
    return None


def _path_of(error: Any) -> tuple[str | int, ...]:
    """The setting, without pydantic's names for the alternatives of its type."""
    return tuple(key for key in error["loc"] if isinstance(key, int) or not _TYPE.search(key))


def _problem(layers: _Layers, path: tuple[str | int, ...], errors: Sequence[Any]) -> str:
    """One sentence for a setting; several errors are of the alternatives of its type."""
    error = errors[0]
    name = ".".join(str(part) for part in path)
    groups = [layers.groups.get(path[:length]) for length in range(len(path), 0, -1)]
    place = _source(layers, path) or next((group for group in groups if group), layers.file)
    said = [_said(error), *(_said(problem).removeprefix(_SHOULD) for problem in errors[1:])]
    if _may_be_null(layers.schema, path):
        said.append("null")
    text = " or ".join(said)
    if error["type"] == "missing":
        return f"{place}: {name} is missing; set it in the profile"
    found = "" if isinstance(error["input"], dict | Section) else f", found {error['input']!r}"
    prefix = f"{name}: " if name else ""
    return f"{place}: {prefix}{text[0].lower()}{text[1:]}{found}"


def _may_be_null(schema: type[Section], path: tuple[str | int, ...]) -> bool:
    """Whether a setting, by its place in the schema, may be switched off by null."""
    inner: type[Section] | None = schema
    for part in path[:-1]:
        inner = _section(inner, str(part)) if inner and part in inner.model_fields else None
    if inner is None or path[-1:] == () or path[-1] not in inner.model_fields:
        return False
    annotation = inner.model_fields[str(path[-1])].annotation
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)


def _said(error: Any) -> str:
    if error["type"] == "tuple_type":
        return f"{_SHOULD}a list such as [a, b]"
    return str(error["msg"]).removeprefix("Value error, ")


def leaves(config: Section, prefix: str = "") -> dict[str, Any]:
    """Every setting of a config by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, Section):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def load_dump(path: Path, newest: int) -> Any:
    """The config in a run's config.json, checked against this version's schema.

    newest: the newest format that is known. Raises UserError for a newer one, and for a file that
    holds no config.
    """
    dump = read_json(path)
    form = dump.get("format", newest)
    if not isinstance(form, int) or form > newest:
        raise UserError(
            f"{path}: expected format {newest} or older, found {form!r}; use the version of tatara "
            "that wrote the run, or a newer one"
        )
    try:
        schema = _schema(dump["config"]["workload"])
        return schema.model_validate(dump["config"])
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: expected the config of a run, found: {error}") from None
