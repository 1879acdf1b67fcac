"""What an action is made of, as settings name it; `data.robot.transform` makes it so."""

from dataclasses import dataclass
from typing import Literal

Change = Literal["clip", "invert", "binary", "absolute", "euler", "moved"]


@dataclass(frozen=True)
class ActionPart:
    """Some numbers of an action.

    of: what was recorded; numbers: which of its numbers, negative ones from the end, () for all;
    changes: made to them in turn. constant: these numbers at every step instead.
    """

    of: Literal["action", "state"] = "action"
    numbers: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()
    constant: tuple[float, ...] = ()
