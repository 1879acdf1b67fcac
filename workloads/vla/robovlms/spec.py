"""What the config.json of a policy with a head says; read without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from workloads.errors import UserError

MODEL_TYPE = "robovlms"
HistoryKind = Literal["none", "head", "interleaved"]


@dataclass(frozen=True)
class HeadSize:
    """features: of the state given; hidden: of the head; size: numbers of an action, a gripper
    last; chunk: actions at once; latent: action tokens a frame; layers, dropout: of the LSTM;
    window: steps that the GPT has positions for; pool: take the largest of the states given,
    `latent` of them, in place of all; gripper: whether it has a branch of its own."""

    features: int
    hidden: int = 1024
    size: int = 7
    chunk: int = 10
    latent: int = 1
    layers: int = 4
    window: int = 8
    pool: bool = False
    dropout: float = 0.0
    gripper: bool = True


@dataclass(frozen=True)
class PolicySpec:
    """A backbone's config.json and the head on it.

    kind: lstm, gpt, fc or discrete; reads: the states that the head is given; state_size: numbers
    of the robot's state, 0 where it is not given; bounds: of the arm's actions in place of the
    statistics' q01 to q99; bins, low, high, usable: of discrete actions, the last one how many ids
    of the vocabulary are neither special nor reserved; action_before_eos: false puts the action
    token of a padded row behind eos and all pads but one, as RoboVLMs trained.
    """

    backbone: Mapping[str, Any]
    kind: str
    head: HeadSize
    history: HistoryKind = "head"
    reads: str = "action_token"
    state_size: int = 0
    bounds: tuple[float, float] | None = None
    gripper_weight: float = 0.01
    bins: int = 256
    low: float = -1.0
    high: float = 1.0
    usable: int = 0
    action_before_eos: bool = True

    @property
    def window(self) -> int:
        """Steps that are remembered."""
        return self.head.window

    @property
    def is_discrete(self) -> bool:
        return self.kind == "discrete"

    def as_fields(self) -> dict[str, Any]:
        """config.json's."""
        return {"model_type": MODEL_TYPE, "architectures": ["PolicyModel"], **asdict(self)}


def parse(raw: Mapping[str, Any], where: str) -> PolicySpec:
    """The spec of a config.json; UserError names the field at fault."""
    names = {item.name for item in fields(PolicySpec)}
    given = {name: value for name, value in raw.items() if name in names}
    try:
        given["head"] = HeadSize(**raw["head"])
        if given.get("bounds") is not None:
            low, high = given["bounds"]
            given["bounds"] = (float(low), float(high))
        return PolicySpec(**given)
    except (KeyError, TypeError, ValueError) as error:
        text = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{where}: expected the fields of a policy with a head, found a mistake: {text}; "
            "get it again"
        ) from error
