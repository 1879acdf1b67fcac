"""The 34 tasks of CALVIN: conditions, effects, and instructions."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

State = dict[str, int | str]
Needs = Mapping[str, int | str | tuple[str, ...]]
_COLOURS = ("red", "blue", "pink")
_SIDES = ("right", "left")
_IN_SLIDER = ("slider_right", "slider_left")


@dataclass(frozen=True)
class Way:
    """One way to do a task: its conditions (one value, or any of several), and its effects."""

    needs: Needs
    changes: Mapping[str, int | str]

    def after(self, state: State) -> State | None:
        """The state afterwards, None where the task cannot be done this way."""
        for name, wanted in self.needs.items():
            if state[name] not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                return None
        return {**state, **self.changes}


@dataclass(frozen=True)
class CalvinTask:
    """category: a sequence has no two tasks of one; instruction: for the policy."""

    category: int
    instruction: str
    ways: tuple[Way, ...]

    def after(self, state: State) -> State | None:
        """The state afterwards, None where it cannot be done, or with more than one block."""
        found = [after for way in self.ways if (after := way.after(state)) is not None]
        return found[0] if len(found) == 1 else None


def _free(needs: Needs, changes: Mapping[str, int | str]) -> Way:
    """A way for an empty gripper."""
    return Way({**needs, "grasped": 0}, changes)


def _block(colour: str) -> str:
    return f"{colour}_block"


def _moved() -> dict[str, CalvinTask]:
    """Turning and pushing, which leave a block on the table."""
    found = {}
    for verb, category, text in (
        ("rotate", 1, "take the {} block and rotate it to the {}"),
        ("push", 1, "go push the {} block {}"),
    ):
        for colour in _COLOURS:
            for side in _SIDES:
                name, block = f"{verb}_{colour}_block_{side}", _block(colour)
                way = _free({block: "table"}, {block: "table"})
                found[name] = CalvinTask(category, text.format(colour, side), (way,))
    return found


def _switched(
    name: str, category: int, text: str, part: str, old: int | str, new: int | str
) -> dict[str, CalvinTask]:
    return {name: CalvinTask(category, text, (_free({part: old}, {part: new}),))}


def _lifted() -> dict[str, CalvinTask]:
    """From the table, from the side of the slider that is open, from the open drawer."""
    found = {}
    for colour in _COLOURS:
        block = _block(colour)
        taken: State = {block: "grasped", "grasped": 1}
        door_away = (
            {block: "slider_left", "slider": "right"},
            {block: "slider_right", "slider": "left"},
        )
        in_drawer = {block: "drawer", "drawer": "open"}
        places: tuple[tuple[str, int, str, tuple[Needs, ...]], ...] = (
            ("table", 4, f"grasp and lift the {colour} block", ({block: "table"},)),
            ("slider", 5, f"lift the {colour} block from the sliding cabinet", door_away),
            ("drawer", 6, f"Take the {colour} block from the drawer", (in_drawer,)),
        )
        for place, category, text, needs in places:
            ways = tuple(_free(need, taken) for need in needs)
            found[f"lift_{colour}_block_{place}"] = CalvinTask(category, text, ways)
    return found


def _put_down() -> dict[str, CalvinTask]:
    """A grasped block into the slider, where it goes to the side of the door, or the drawer."""
    slider, drawer = [], []
    for block in map(_block, _COLOURS):
        held: State = {block: "grasped", "grasped": 1}
        for side in _SIDES:
            slider.append(Way({**held, "slider": side}, {block: f"slider_{side}", "grasped": 0}))
        drawer.append(Way({**held, "drawer": "open"}, {block: "drawer", "grasped": 0}))
    return {
        "place_in_slider": CalvinTask(
            7, "store the grasped block in the sliding cabinet", tuple(slider)
        ),
        "place_in_drawer": CalvinTask(7, "store the grasped block in the drawer", tuple(drawer)),
    }


def _stacked() -> dict[str, CalvinTask]:
    on, off = [], []
    for top, bottom in permutations(map(_block, _COLOURS), 2):
        tower: State = {top: "stacked_top", bottom: "stacked_bottom"}
        on.append(Way({top: "grasped", bottom: "table", "grasped": 1}, {**tower, "grasped": 0}))
        off.append(_free(tower, {top: "table", bottom: "table"}))
    return {
        "stack_block": CalvinTask(10, "stack the grasped block", tuple(on)),
        "unstack_block": CalvinTask(11, "remove the stacked block", tuple(off)),
    }


def _pushed_into_drawer() -> dict[str, CalvinTask]:
    """The one block on the table, while both others are in the slider."""
    ways = []
    for block in map(_block, _COLOURS):
        others = {other: _IN_SLIDER for other in map(_block, _COLOURS) if other != block}
        ways.append(_free({block: "table", **others, "drawer": "open"}, {block: "drawer"}))
    text = "slide the block that it falls into the drawer"
    return {"push_into_drawer": CalvinTask(9, text, tuple(ways))}


# The order is that of the evaluation's random choices.
TASKS: Mapping[str, CalvinTask] = {
    **_moved(),
    **_switched(
        "move_slider_left", 2, "push the sliding door to the left side", "slider", "right", "left"
    ),
    **_switched(
        "move_slider_right", 2, "push the sliding door to the right side", "slider", "left", "right"
    ),
    **_switched("open_drawer", 3, "pull the handle to open the drawer", "drawer", "closed", "open"),
    **_switched(
        "close_drawer", 3, "push the handle to close the drawer", "drawer", "open", "closed"
    ),
    **_lifted(),
    **_put_down(),
    **_stacked(),
    **_switched(
        "turn_on_lightbulb", 8, "use the switch to turn on the light bulb", "lightbulb", 0, 1
    ),
    **_switched(
        "turn_off_lightbulb", 8, "use the switch to turn off the light bulb", "lightbulb", 1, 0
    ),
    **_switched("turn_on_led", 8, "press the button to turn on the led light", "led", 0, 1),
    **_switched("turn_off_led", 8, "press the button to turn off the led light", "led", 1, 0),
    **_pushed_into_drawer(),
}
