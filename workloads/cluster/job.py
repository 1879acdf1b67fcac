"""The facts of a job that every engine needs, and the profile sent with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from workloads.errors import UserError

# Secrets that a run may need; only their names are written.
_SECRETS = ("HF_TOKEN", "WANDB_API_KEY")


@dataclass(frozen=True)
class ClusterJob:
    """A resolved profile and the resources it asks for.

    nodes: machines; gpus, ranks, cpus: on each of them. hours: 0 for no deadline. run_id: the same
    through every restart, so that the run is resumed.
    """

    name: str
    run_id: str
    profile: str  # YAML of all settings, whatever their source
    nodes: int
    ranks: int
    gpus: int = 0
    cpus: int = 0
    hours: float = 0.0
    retries: int = 3
    image: str = ""
    secrets: tuple[str, ...] = ()


def profile_of(config: Any) -> str:
    """A resolved config as one profile: without defaults, with `extends` and environment merged.

    Where the job runs there is no `.env` and no environment of this machine.
    """
    found = config.model_dump(mode="json", exclude_unset=True)
    found.pop("name", None)
    return dump([{"workload": config.workload, **found}])


def ranks_of(config: Any, gpus: int) -> int:
    """Processes on each node; UserError where they are more than the GPUs asked for."""
    ranks: int = config.ranks_per_node(gpus)
    if gpus and ranks > gpus:
        raise UserError(
            f"parallel.ranks_per_node: expected at most the {gpus} of --gpus, found {ranks}; ask "
            "for as many GPUs"
        )
    return ranks


def secrets_of(env: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the secrets that a job would read and that are set here."""
    return tuple(name for name in _SECRETS if env.get(name))


class _Dumper(yaml.SafeDumper):
    """Write scripts and profiles as block literals, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def dump(found: list[dict[str, Any]]) -> str:
    """Documents as YAML, read again to the same values."""
    return yaml.dump_all(found, Dumper=_Dumper, sort_keys=False, width=100)
