"""The config.json of a policy with a head, read without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from workloads.errors import UserError

MODEL_TYPE = "robovlms"
HistoryKind = Literal["none", "head", "interleaved"]
BRANCH = (1024, 512, 256)  # widths of the layers of an arm's or a gripper's branch
GPT_LAYERS = GPT_HEADS = 8
IMAGE_SIDE = 224  # pixels, at most, where a backbone takes images of any size


@dataclass(frozen=True)
class HeadSize:
    """features: of the state given; hidden: of the head; size: numbers of an action, a gripper
    last; chunk: actions at once; latent: action tokens a frame; layers, dropout: of the LSTM;
    window: steps that the GPT has positions for; pool: max-pool the states to `latent` ones;
    gripper: whether it has a branch of its own."""

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

    kind: lstm, gpt, fc or discrete; reads: the states that the head is given; state_size: size of
    the robot's state, 0 where it is not used; bounds: of the arm's actions instead of the
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
        """Number of remembered steps."""
        return self.head.window

    @property
    def is_discrete(self) -> bool:
        return self.kind == "discrete"

    def as_fields(self) -> dict[str, Any]:
        """The fields of config.json."""
        return {"model_type": MODEL_TYPE, "architectures": ["PolicyModel"], **asdict(self)}


def parameters(kind: str, size: HeadSize) -> int:
    """Number of parameters of a head; 0 for discrete actions, the language model's own tokens."""
    if kind == "discrete":
        return 0
    width, features = size.hidden * size.latent, size.features * size.latent

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    def branch(outputs: int) -> int:
        widths = (width, *BRANCH, outputs)
        return sum(linear(*pair) for pair in zip(widths, widths[1:], strict=False))

    found = branch(size.chunk * (size.size - size.gripper))
    found += branch(size.chunk) if size.gripper else 0
    if kind == "lstm":
        gates = [features, *[width] * (size.layers - 1)]
        return found + sum(4 * width * (inputs + width + 2) for inputs in gates)
    if kind == "fc":
        return found + linear(features, features // 2) + linear(features // 2, width)
    block = 12 * width * width + 13 * width
    own = 0 if size.features == size.hidden else linear(size.features, size.hidden)
    return found + own + GPT_LAYERS * block + (size.window + 2) * width


def parse(raw: Mapping[str, Any], where: str) -> PolicySpec:
    """The spec of a config.json.

    Raises UserError that names the field at fault.
    """
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
            "copy it again"
        ) from error
