"""Forms in which people write rows for GRPO, distinguished by their columns.

    columns        image, problem, solution         R1-V, EasyR1, geometry3k, and CSV files
    conversations  from / value                     VLM-R1, LLaVA
    messages       role / content, images           ms-swift
    prompt         role / content, reward_model     verl

The last two bring whole prompts, to which no wording is added unless a profile has its own.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from workloads.errors import UserError
from workloads.grpo.data.images import images_of, parsed_list
from workloads.grpo.prompts import IMAGE_MARK, Question

# Names under which the three columns are known, the datasets' own first.
COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image": ("image", "images", "image_path", "file_name"),
        "problem": ("problem", "question", "query"),
        "solution": ("solution", "answer", "ground_truth"),
    }
)
_NONE: tuple[tuple[str, str], ...] = ()
_TURNS = ("conversations", "messages", "prompt")
_ROLES = MappingProxyType({"human": "user", "gpt": "assistant"})
# Image marks of other projects and models.
_MARK = re.compile(
    r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|image_pad\|>|<image_placeholder>"
    r"|<\|image\|>|<ImageHere>|<image_soft_token>|<start_of_image>|\[IMG\]|<Image>|<IMAGE>|<img>"
)
_NUMBERED = re.compile(r"<\|?image[ _-]?(\d{1,2})\|?>")  # <image 1> of MMMU, <|image_1|> of Phi
_IMAGE_COLUMN = re.compile(r"image[_ ]?(\d{1,2})")
_VIDEO = re.compile(r"<video>|<\|video_pad\|>|<\|video\|>")


@dataclass(frozen=True)
class Form:
    """Columns of a file that hold question, solution and images; None for a missing one.

    `turns`: the column of a conversation, instead of `problem`. `doubles`: pairs of columns for the
    same, as ("problem", "solution" or "image", the column that is used, the other). `others`:
    columns for rewards only.
    """

    problem: str | None
    solution: str | None
    images: tuple[str, ...] = ()
    turns: str | None = None
    doubles: tuple[tuple[str, str, str], ...] = ()
    others: tuple[str, ...] = ()

    @property
    def light(self) -> list[str]:
        """The columns beside the images, which are read row by row."""
        known = (self.problem, self.solution, self.turns, *self.others)
        return list(dict.fromkeys(name for name in known if name))

    def __str__(self) -> str:
        asked = self.turns or self.problem
        solution = "its last turn" if self.solution is None else self.solution
        return ", ".join([f"{asked} → {solution}", *self.images])


def form_of(
    file: Path,
    present: Iterable[str],
    wanted: Mapping[str, str],
    sample: Sequence[Mapping[str, Any]] = (),
) -> Form:
    """The form of a file with the columns `present`; `wanted` names columns that differ.

    Of two columns that may hold the solution the one with the shorter texts in `sample` is taken.
    Raises UserError where question or solution cannot be found.
    """
    names = list(present)
    asked, questions = _question(names, wanted, sample)
    if asked is None:
        _refuse(file, names, wanted, "problem")
    is_prompt = asked == "prompt" and "problem" not in wanted
    turns = asked if is_prompt or _holds_turns(sample, asked) else None
    candidates = _solutions(names, wanted, turns)
    chosen = min(candidates, key=lambda name: _length(sample, name)) if candidates else None
    if chosen is None and turns is None:
        _refuse(file, names, wanted, "solution")
    images = _images(file, names, wanted)
    usual = [] if "image" in wanted else [name for name in COLUMNS["image"] if name in names]
    doubles = tuple(
        (column, str(taken), other)
        for column, taken, found in (
            ("problem", asked, questions),
            ("solution", chosen, candidates),
            ("image", "".join(images[:1]), usual),
        )
        for other in found
        if other != taken and _is_filled(sample, other)
    )
    taken = {asked, chosen, *images, *usual}
    others = tuple(name for name in names if name not in taken and _is_filled(sample, name))
    return Form(None if turns else asked, chosen, images, turns, doubles, others)


def _images(file: Path, names: list[str], wanted: Mapping[str, str]) -> tuple[str, ...]:
    """The column of the images, or one for each, image_1 and image_2, by their numbers."""
    if column := _first(file, names, wanted, "image", needed="image" in wanted):
        return (column,)
    numbered = [found for name in names if (found := _IMAGE_COLUMN.fullmatch(name))]
    return tuple(found[0] for found in sorted(numbered, key=lambda found: int(found[1])))


def _question(
    names: list[str], wanted: Mapping[str, str], sample: Sequence[Mapping[str, Any]]
) -> tuple[str | None, list[str]]:
    """The column of the question, and all candidates: plain ones first, then conversations."""
    if "problem" in wanted:
        return (wanted["problem"] if wanted["problem"] in names else None), []
    plain = [name for name in COLUMNS["problem"] if name in names]
    turns = [
        name
        for name in _TURNS
        if name in names and (name == "prompt" or _holds_turns(sample, name))
    ]
    found = [*plain, *turns]
    filled = [name for name in found if _is_filled(sample, name)]
    return next(iter([*filled, *found]), None), found


def _is_filled(sample: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column has any value; images are not read with the sample."""
    is_read = any(name in row for row in sample)
    return not is_read or any(row.get(name) not in (None, "", []) for row in sample)


def _solutions(names: list[str], wanted: Mapping[str, str], turns: str | None) -> list[str]:
    if "solution" in wanted:
        return [wanted["solution"]] if wanted["solution"] in names else []
    found = [name for name in COLUMNS["solution"] if name in names]
    if turns == "prompt" and "reward_model" in names:
        return ["reward_model"]
    return found


def _holds_turns(sample: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column holds conversations."""
    return any(isinstance(_parsed(row.get(name)), list) for row in sample)


def _length(sample: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(len(str(row.get(name) or "")) for row in sample)


def _first(
    file: Path, names: list[str], wanted: Mapping[str, str], column: str, needed: bool = True
) -> str | None:
    candidates = (wanted[column],) if column in wanted else COLUMNS[column]
    found = next((name for name in candidates if name in names), None)
    if found is None and needed:
        _refuse(file, names, wanted, column)
    return found


def _refuse(file: Path, names: list[str], wanted: Mapping[str, str], column: str) -> NoReturn:
    candidates = (wanted[column],) if column in wanted else COLUMNS[column]
    raise UserError(
        f"{file}: expected a column {' or '.join(candidates)} for the {column}, "
        f"found {', '.join(map(str, names))}; map the columns (data.columns), or use one of the "
        "forms of docs/grpo.md"
    )


def read_question(row: Mapping[str, Any], form: Form, images: int) -> tuple[Question, Any]:
    """Question and unprocessed solution of a row with this number of images.

    Raises ValueError with what is wrong.
    """
    if form.turns is None:
        said, before, answer = _text(row, str(form.problem)), _NONE, None
    else:
        said, before, answer = _conversation(row.get(form.turns), form.turns)
    text = _MARK.sub(IMAGE_MARK, _in_order(said))
    if video := _VIDEO.search(text):
        raise ValueError(
            f"expected images, found the mark of a video, {video[0]}; extract images from it"
        )
    marks = text.count(IMAGE_MARK)
    if marks and marks != images:
        raise ValueError(
            f"expected an image for each {IMAGE_MARK} of the question, found {marks} marks and "
            f"{images} images"
        )
    solution = answer if form.solution is None else _solution(row, form.solution)
    is_worded = form.turns in ("messages", "prompt")
    return Question(text, images, before, is_worded), solution


def _in_order(text: str) -> str:
    """Numbered marks without their numbers, which must count the images from 1 in their order."""
    numbers = [int(number) for number in _NUMBERED.findall(text)]
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(
            f"expected marks of images from <image 1> in order, each once, found "
            f"{', '.join(map(str, numbers))}; put the images in the order of their marks"
        )
    return _NUMBERED.sub(IMAGE_MARK, text)


def images_in_turns(value: Any) -> list[Any]:
    """Images that the parts of a conversation contain, as in OpenAI's format."""
    turns = _parsed(value)
    if not isinstance(turns, list):
        return []
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    named = [part.get(part["type"]) for part in parts if _type_of(part) in ("image", "image_url")]
    return [image for image in named if image]


def _type_of(part: Any) -> str | None:
    return part.get("type") if isinstance(part, dict) else None


def _conversation(value: Any, column: str) -> tuple[str, tuple[tuple[str, str], ...], str | None]:
    """The last question of a conversation, the turns before it, and its answer."""
    turns = _parsed(value)
    if isinstance(turns, str) and not re.match(r"\s*\[\s*\{", turns):
        return turns, (), None
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"column {column!r}: expected a list of turns, found {value!r:.60}")
    pairs = [
        (_ROLES.get(role, role), _content(turn.get("content", turn.get("value"))))
        for turn in turns
        for role in [str(turn.get("role", turn.get("from")))]
    ]
    said = None
    if pairs and pairs[-1][0] == "assistant":
        said = pairs.pop()[1]
    if not pairs or pairs[-1][0] != "user" or not pairs[-1][1].strip():
        raise ValueError(
            f"column {column!r}: expected a question of the user at its end, found none"
        )
    if any(IMAGE_MARK in text for _, text in pairs[:-1]):
        raise ValueError(
            f"column {column!r}: expected images in the last turn only, found earlier ones"
        )
    return pairs[-1][1], tuple(pairs[:-1]), said


def _content(content: Any) -> str:
    """A turn's text; parts that are images become marks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"expected a turn of text, found {content!r:.60}")
    texts = []
    for part in content:
        kind = _type_of(part)
        if kind not in ("text", "image", "image_url"):
            raise ValueError(f"expected parts of text and images in a turn, found {part!r:.60}")
        texts.append(str(part["text"]) if kind == "text" else IMAGE_MARK)
    return "".join(texts)


def _parsed(value: Any) -> Any:
    """The list of a cell that holds it as text, as in CSV."""
    return list(value) if isinstance(value, tuple) else parsed_list(value)


def _solution(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column)
    if isinstance(value, str) and column == "reward_model":
        value = _parsed_object(value)
    if isinstance(value, dict):
        known = [value[name] for name in ("ground_truth", "solution", "answer") if name in value]
        if not known:
            raise ValueError(
                f"column {column!r}: expected ground_truth, solution or answer in it, found "
                f"{', '.join(map(str, value)) or 'nothing'}"
            )
        value = known[0]
    return value


def _parsed_object(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def solutions_of(value: Any, column: str) -> tuple[str, ...]:
    """The right answers in a cell: one, several texts, or numbers such as a box.

    Raises ValueError where there is none.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        texts = [item for item in value if item.strip()]
        if texts:
            return tuple(texts)
    if isinstance(value, list | tuple) and value:
        return (json.dumps(value),)
    return (_as_text(value, column),)


def _text(row: Mapping[str, Any], column: str) -> str:
    return _as_text(row.get(column), column)


def _as_text(value: Any, column: str) -> str:
    text = value
    if isinstance(value, bool):
        text = str(value)
    elif isinstance(value, int | float):
        # pandas writes empty cells as NaN, which is no number.
        text = str(value) if math.isfinite(value) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"column {column!r}: expected text, found {value!r:.80}")
    return text


__all__ = [
    "COLUMNS",
    "Form",
    "form_of",
    "images_in_turns",
    "images_of",
    "read_question",
    "solutions_of",
]
