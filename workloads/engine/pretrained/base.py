"""The model that a run starts from: found once, by all ranks together, and handed on as a Base.

Only safetensors, JSON and tokenizer files are read; code only where the config allows it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from workloads.config.sections import Model, Profile
from workloads.engine import distributed
from workloads.engine.hub import hub
from workloads.engine.nodes import check_alike, model_files, software
from workloads.engine.pretrained import stablelm_epoch
from workloads.engine.pretrained.files import (
    ADAPTER_CONFIG,
    Reporter,
    check_weights,
    is_adapter,
    is_path,
    weight_files,
)
from workloads.errors import Retry, TataraError, UserError
from workloads.json_files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LIGHT = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md")
C = TypeVar("C")


@dataclass(frozen=True)
class Base(Generic[C]):
    """A model whose files are on this machine.

    model: the one in use, without fallbacks; folder: its files on this machine; config: its
    config.json as the workload reads it.
    """

    model: Model
    folder: Path
    config: C


def load_config(model: Model, folder: Path) -> "PreTrainedConfig":
    """The model's own config; UserError where it is missing, unknown, or wants code to be run."""
    from transformers import AutoConfig, StableLmConfig

    if not (folder / "config.json").is_file():
        adapter = (folder / ADAPTER_CONFIG).is_file()
        found = "an adapter; its base is what model.name names" if adapter else "none; is it whole?"
        raise UserError(f"{model.name}: expected a model's config.json, found {found}")
    own = read_json(folder / "config.json")
    _check_code(model, own)
    try:
        if own.get("model_type") == stablelm_epoch.KIND and not model.trust_remote_code:
            config = StableLmConfig(**stablelm_epoch.native_fields(model.name, own))
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise UserError(
            f"{model.name}: config.json of type {own.get('model_type')!r} is not one that this "
            f"version of transformers can build: {str(error).splitlines()[0]}"
        ) from error
    # A snapshot's folder tells a person nothing, and differs between machines.
    config.name_or_path = model.name
    return config


def _check_code(model: Model, own: dict[str, Any]) -> None:
    """Code may come only from the repository and the commit that the profile names."""
    places = own.get("auto_map")
    if not model.trust_remote_code or not isinstance(places, dict):
        return
    for place in places.values():
        owner, dashes, _ = str(place).partition("--")
        if dashes and owner != model.name:
            raise UserError(
                f"{model.name}: its code comes from another repository, {owner}, whose version "
                "nothing pins; use a model with code of its own or none"
            )


def resolve(
    config: Profile, report: Reporter, read: Callable[[Model, Path], Any] = load_config
) -> Base[Any]:
    """The base of a run, the same model on all ranks: the first of the list that can be used.

    Called by all ranks together. Rank 0 chooses, so that no rank takes a fallback alone; the first
    rank of every other node finds the files for its node, downloading them where needed. Raises the
    error of any rank on all, also where code, versions or files differ between nodes.
    """
    base: Base[Any] | None = None
    problem: TataraError | None = None
    if distributed.rank() == 0:
        try:
            base = find_base(config.model, report, read=read)
        except TataraError as error:
            problem = error
    chosen: Model | TataraError = distributed.from_main(problem or (base and base.model))
    if isinstance(chosen, TataraError):
        raise chosen
    if base is None and distributed.is_first_of_node():
        try:
            base = find_base(chosen, report, read=read)
        except TataraError as error:
            problem = error
    distributed.all_or_none(problem, "model")
    folders = dict(distributed.gather((distributed.node(), base.folder) if base else (None, None)))
    folder = folders[distributed.node()]
    check_alike(lambda: software() | model_files(folder, weights=not chosen.random_init))
    return base or Base(chosen, folder, read(chosen, folder))


def find_base(
    model: Model,
    report: Reporter,
    weights: bool = True,
    read: Callable[[Model, Path], Any] = load_config,
) -> Base[Any]:
    """The first of `name` and its fallbacks whose files are all there, downloaded where needed.

    weights: whether they are needed, where the model does not start from random ones. Reports why
    each earlier one failed. Raises the error of a single one, or one that lists all: Retry where
    any may pass by itself, else UserError.
    """
    failures: list[TataraError] = []
    wanted = list(candidates(model))
    for candidate in wanted:
        try:
            folder = locate(candidate, report, weights=weights and not candidate.random_init)
            base = Base(candidate, folder, read(candidate, folder))
        except TataraError as error:
            failures.append(error)
            if len(wanted) > 1:
                report(f"model {candidate.name} cannot be used: {error}")
            continue
        if failures:
            kind = read_json(folder / "config.json").get("model_type")
            report(f"model: using {candidate.name} ({kind}) instead of {model.name}")
        return base
    if len(failures) == 1:
        raise failures[0]
    kind_of_error = Retry if any(isinstance(error, Retry) for error in failures) else UserError
    reasons = "\n  ".join(str(error) for error in failures)
    raise kind_of_error(f"none of {len(failures)} models can be used:\n  {reasons}")


def candidates(model: Model) -> Iterator[Model]:
    """`name` and each fallback as a model of its own; revision and code belong to `name` alone."""
    yield model.model_copy(update={"fallbacks": ()})
    for name in model.fallbacks:
        own = {"name": name, "fallbacks": (), "revision": None, "trust_remote_code": False}
        yield model.model_copy(update=own)


def locate(model: Model, report: Reporter, weights: bool) -> Path:
    """The folder with a model's files: a local one, or the hub's snapshot in the cache.

    weights: whether the weights are needed too; they are downloaded, and must be there. An
    adapter's always are: they are small, and only they show which adapters exist. Raises
    UserError for a folder that does not exist or lacks weights, and as `hub.fetch` does.
    """
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        if weights:
            check_weights(model.name, folder)
        return folder
    if is_path(model.name):
        raise UserError(
            f"model.name: expected a folder or a hub id, found {model.name!r}, which does not "
            f"exist; correct the path{hub.nearest_folder(model.name)}"
        )
    patterns = _LIGHT + (("*.py",) if model.trust_remote_code else ())
    folder = hub.fetch(model.name, patterns, model.revision, report=report)
    if is_adapter(folder):
        hub.fetch(model.name, (*patterns, "*.safetensors"), model.revision)
    elif weights:
        hub.fetch(model.name, (*patterns, *weight_files(folder)), model.revision)
        check_weights(model.name, folder)
    return folder


def locate_for_use(model: Model, report: Reporter) -> tuple[Path, bool]:
    """The folder of a whole model or an adapter, with its weights, and whether it is an adapter.

    Raises as `locate` does.
    """
    folder = locate(model, report, weights=False)
    if is_adapter(folder):
        return folder, True
    return locate(model, report, weights=True), False
