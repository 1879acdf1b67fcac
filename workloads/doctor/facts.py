"""All facts that the checks need, gathered once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workloads import environment
from workloads.doctor import nvidia
from workloads.doctor.nvidia import Build, InstalledCard, Smi
from workloads.errors import UserError
from workloads.host import engine as docker
from workloads.host.engine import Engine
from workloads.host.programs import ProgramResult
from workloads.host.services import Service
from workloads.host.services import services as services_of

if TYPE_CHECKING:
    from workloads.config.sections import Profile
    from workloads.plan.estimate import Breakdown

SETUP = "make setup"


@dataclass(frozen=True)
class Settings:
    """A profile's settings, or why there are none: `missing` is no fault, `mistake` is one."""

    config: "Profile | None" = None
    missing: str = ""
    mistake: str = ""


@dataclass(frozen=True)
class PlannedNode:
    """One node that would run here: the GPUs that it sees, and its ranks where they are known."""

    name: str
    cards: tuple[InstalledCard, ...]
    ranks: int | None
    listed: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Facts:
    """Facts of this machine and of the run planned on it."""

    env: Mapping[str, str] = field(repr=False)  # may hold a token
    profile: str | None
    runtime: Literal["docker", "local"]
    why: str
    engine: Engine | str
    services: tuple[Service, ...]
    complaint: str
    smi: Smi
    build: Build
    handed: ProgramResult | None
    settings: Settings
    asked: str = ""  # the profile's text and the words after it
    plan: "Breakdown | None" = None

    @property
    def config(self) -> "Profile | None":
        return self.settings.config

    @property
    def in_docker(self) -> bool:
        return self.runtime == "docker"

    @property
    def needs_gpu(self) -> bool:
        """Whether the service reserves a GPU, without which it does not start."""
        return any(service.reserves_gpu for service in self.services)

    @property
    def ignores_gpu(self) -> bool:
        """Whether the run is in a container without a GPU, or hides all GPUs."""
        if self.in_docker:
            return self.profile is not None and not self.needs_gpu
        return self.env.get("CUDA_VISIBLE_DEVICES") == ""

    @property
    def cards(self) -> tuple[InstalledCard, ...]:
        """The cards that a run here may use."""
        if self.in_docker:
            return self.smi.cards
        wanted = self.env.get("CUDA_VISIBLE_DEVICES")
        return nvidia.visible(self.smi.cards, wanted, self.smi.slices)

    @property
    def used_cards(self) -> tuple[InstalledCard, ...]:
        """The cards of all nodes that would run here."""
        used = {card.index: card for node in self.nodes for card in node.cards}
        return tuple(used.values()) if self.profile else self.cards

    @property
    def nodes(self) -> tuple[PlannedNode, ...]:
        """The nodes of the job that run on this machine."""
        if self.in_docker:
            return tuple(
                _container(service, self) for service in self.services if service.reserves_gpu
            )
        here = self.nodes_here
        share = len(self.cards) // here
        parts = [self.cards[at * share : (at + 1) * share] for at in range(here)]
        ranks = self.config.ranks_per_node(share) if self.config else None
        return tuple(PlannedNode(f"node {at}", part, ranks) for at, part in enumerate(parts))

    @property
    def nodes_here(self) -> int:
        """How many nodes of the job share this machine."""
        if self.in_docker:
            return max(1, sum(service.trains for service in self.services))
        whole = self.config.parallel.nodes if self.config else 1
        # With fewer GPUs than nodes, `train` makes as many nodes as there are GPUs.
        return 1 if self.env.get("NODE_RANK") else min(whole, len(self.cards) or whole)

    def setting(self, name: str) -> str:
        """An environment variable as the run will see it."""
        if self.in_docker and self.services:
            return self.services[0].env.get(name, "")
        return self.env.get(name, "")

    @property
    def outputs(self) -> Path:
        return Path(self.env.get("TATARA_OUTPUTS") or "outputs")

    @property
    def cache(self) -> Path:
        return Path(self.env.get("TATARA_CACHE") or ".cache")


def _container(service: Service, facts: Facts) -> PlannedNode:
    wanted = service.env.get("CUDA_VISIBLE_DEVICES")
    cards = nvidia.visible(facts.smi.cards, wanted)
    listed = None if wanted is None else tuple(part.strip() for part in wanted.split(",") if part)
    config = facts.config
    ranks = config.ranks_per_node(len(cards)) if config and service.trains else None
    return PlannedNode(service.name, cards, ranks, listed)


def look(env: Mapping[str, str], profile: str | None, words: Sequence[str]) -> Facts:
    """Gather all facts: the engine, Compose, nvidia-smi, and the profile's settings."""
    env = environment.load(env)
    engine = docker.engine(env)
    runtime, why = docker.choose_runtime(env, engine)
    services: tuple[Service, ...] = ()
    complaint = ""
    if runtime == "docker" and profile is not None:
        listed = services_of(Path(profile).stem, env)
        if isinstance(listed, str):
            complaint = listed
        else:
            services = listed
    if runtime == "docker" and profile and not services and not complaint:
        runtime, why = "local", f"no service of compose.yaml runs {Path(profile).stem}"
    smi = nvidia.smi(env)
    image = _image(profile, services, smi, env) if runtime == "docker" else ""
    handed = docker.try_gpus(image, env) if image else None
    found = nvidia.build_in(handed.out, f"the torch in {image}") if handed else None
    facts = Facts(
        env,
        profile,
        runtime,
        why,
        engine,
        services,
        complaint,
        smi,
        build=found or _build(runtime, env),
        handed=handed,
        settings=read_settings(profile, words, env, services, smi.cards),
        asked=_asked(profile, words),
    )
    return _planned(facts)


def _planned(facts: Facts) -> Facts:
    """Add the plan of one node, where settings are known."""
    if facts.config is None:
        return facts
    from workloads.plan.estimate import estimate

    gpus = min((len(node.cards) for node in facts.nodes), default=0)
    try:
        return replace(facts, plan=estimate(facts.config, gpus or None, facts.env))
    except UserError as error:
        return replace(facts, settings=Settings(mistake=str(error)))


def _image(
    profile: str | None, services: Sequence[Service], smi: Smi, env: Mapping[str, str]
) -> str:
    """One of our images to test GPUs with, if one was built."""
    images = [service.image for service in services if service.reserves_gpu]
    if profile is None and smi.cards:
        images = [f"tatara/demo:{env.get('TATARA_TAG') or 'local'}"]
    return images[0] if images and docker.is_there(images[0], env) else ""


def _build(runtime: str, env: Mapping[str, str]) -> Build:
    """The torch installed here, or the one that setup would install."""
    installed = nvidia.installed_build() if runtime == "local" else None
    wanted = nvidia.build_of_index(env.get("TORCH_INDEX_URL") or "")
    return installed or wanted or Build(nvidia.USUAL_CUDA, "the usual build")


def read_settings(
    profile: str | None,
    words: Sequence[str],
    env: Mapping[str, str],
    services: Sequence[Service] = (),
    cards: tuple[InstalledCard, ...] = (),
) -> Settings:
    """The profile's settings as the run will have them, of the recipe that RECIPE selects."""
    if profile is None:
        return Settings(missing="no profile was named")
    try:
        from workloads.config.merge import resolve
        from workloads.plan.recipes import chosen
    except ModuleNotFoundError as error:
        return Settings(missing=f"needs `{SETUP}` ({error.name} is not installed)")
    train = next((service for service in services if service.trains), None)
    given = list(words)
    if train is not None:
        # The service trains the profile that the start names, whatever its own command does.
        env = {**env, **train.env}
        given = [*train.words[2:], *words]
    seen = nvidia.visible(cards, env.get("CUDA_VISIBLE_DEVICES"))
    memory = min((card.memory for card in seen if card.memory), default=None)
    try:
        path = chosen(_profile_file(profile), env, lambda _: memory)
        config, _ = resolve(path, env, given)
    except UserError as error:
        return Settings(mistake=str(error))
    return Settings(config)


def _asked(profile: str | None, words: Sequence[str]) -> str:
    """Values as the profile's text states them, for when settings cannot be resolved."""
    path = _profile_file(profile) if profile else None
    text = path.read_text(encoding="utf-8", errors="replace") if path and path.is_file() else ""
    return "\n".join([text, *words])


def _profile_file(profile: str) -> Path:
    """A profile by its path, or by its name in profiles/ and below."""
    path = Path(profile)
    if path.suffix in (".yaml", ".yml") or "/" in profile:
        return path
    return next(iter(sorted(Path("profiles").glob(f"**/{profile}.yaml"))), path)
