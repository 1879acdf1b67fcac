"""Parts of an action, as settings name them; `data.robot.transform` computes them."""

from dataclasses import dataclass
from typing import Literal

Change = Literal["clip", "invert", "binary", "absolute", "euler", "moved"]


@dataclass(frozen=True)
class ActionPart:
    """Some numbers of an action.

    of: the recorded vector; numbers: indices into it, negative ones from the end, () for all;
    changes: applied in order. constant: these numbers at every step instead.
    """

    of: Literal["action", "state"] = "action"
    numbers: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()
    constant: tuple[float, ...] = ()
