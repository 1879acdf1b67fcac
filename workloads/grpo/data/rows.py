"""Rows for GRPO: a question with its images, if any, and a solution.

`read_examples` reads files in common forms: a folder with images and metadata (imagefolder),
Parquet with images inside, JSON, CSV or Arrow beside image files, in the forms of `forms`.
`generate_scenes` draws CLEVR-like scenes. Images stay where they are until they are opened.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from workloads.data.build_once import COMPLETE
from workloads.data.row_files import data_files, is_data, left_out_lines, visible_files
from workloads.data.rows import BadRow, by_reason, indented, read_rows
from workloads.errors import UserError
from workloads.grpo.data.forms import (
    Form,
    form_of,
    images_in_turns,
    read_question,
    solutions_of,
)
from workloads.grpo.data.images import (
    GreyImage,
    ImageFile,
    ParquetImage,
    ParquetTable,
    StoredImage,
    find_image,
    images_of,
)
from workloads.grpo.data.scenes import SIZES, Palette, Scene, colours_of, draw_scene, render
from workloads.grpo.prompts import IMAGE_MARK, Question, Turns, Wording
from workloads.grpo.rewards.answers import extract_answer

if TYPE_CHECKING:
    from datasets import Dataset

Questions = Literal["all", "colour", "shape", "mixed"]

QUESTION = "How many different items are there in the image?"
_MOST = 10  # more do not fit into one image without hiding each other
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_SHOWN = 8  # columns named in a note
_SAMPLE = 100  # rows by which a form is told
# What the trainer itself hands to rewards under these names.
RESERVED = frozenset(
    ("prompt", "prompts", "completion", "completions", "completion_ids", "problem", "solution")
    + ("place", "image", "images", "trainer_state", "log_metric", "log_extra", "environments")
)


@dataclass(frozen=True)
class Example:
    """One row: `place` for messages, the question's text, the solution, and its images, if any.

    `more_solutions`: further right answers. `columns`: the row's other columns, for rewards.
    """

    place: str
    problem: str
    solution: str
    images: tuple[StoredImage, ...] = ()
    more_solutions: tuple[str, ...] = ()
    before: tuple[tuple[str, str], ...] = ()
    is_worded: bool = False
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> Question:
        """The part of the row that a wording turns into a prompt."""
        return Question(self.problem, len(self.images), self.before, self.is_worded)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Upright (width, height) of each image, from its header; ValueError for a broken one."""
        return tuple(image.size() for image in self.images)

    def open_images(self) -> list[Image.Image]:
        """The row's images, upright and RGB.

        Raises UserError, naming file and row, for a broken image.
        """
        try:
            return [image.load() for image in self.images]
        except ValueError as error:
            raise UserError(f"{self.place}: {error}; fix or remove the row") from error


def greyed(example: Example) -> Example:
    """The example with grey images."""
    return replace(example, images=tuple(GreyImage(image) for image in example.images))


def with_images(examples: list[Example], which: str) -> list[Example]:
    """The examples with their `own` images, with each other's (`shuffled`), or `grey` ones."""
    if which == "grey":
        return [greyed(example) for example in examples]
    if which == "own":
        return examples
    images = [example.images for example in examples]
    Random(0).shuffle(images)
    return [replace(example, images=shown) for example, shown in zip(examples, images, strict=True)]


@dataclass
class Examples:
    """Good rows in order, bad rows that were left out, and remarks about the files."""

    rows: list[Example] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_examples(
    path: Path,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    image_root: Path | None = None,
    budget: int = 10,
    progress: Callable[[], None] = lambda: None,
) -> Examples:
    """The rows of a file, or of a folder's files that belong to `split`.

    `columns` says which column is the `image`, `problem` and `solution`; those not named are
    found by their usual names. Paths of images count from `image_root`, else from the file that
    names them or the folder `images` beside it, with or without their leading folders. A row
    without an image is one of text. Raises UserError past `budget` bad rows, a missing or broken
    image among them, and for files of unknown form.
    """
    found, tables = Examples(), _tables(path, split)
    for file in tables:
        if file.suffix.lower() == ".parquet":
            _read_parquet(file, columns or {}, image_root, found, progress)
        else:
            _read_table(file, columns or {}, image_root, budget, found, progress)
    _keep_within(budget, path, found)
    found.notes += _marks(found.rows)
    found.notes += left_out_lines(_left_out(path, split, tables, found.rows))
    return found


def training_dataset(
    examples: Sequence[Example], turns: Callable[[Question], Turns] | None = None
) -> "Dataset":
    """A dataset for trainers: prompt, solution, place, images, and the rows' own columns.

    Images are opened when a row is read: `image` where every row has one, else `images`, a
    list. Prompts are conversations, in R1-V's wording unless `turns` makes others. A row with
    several right answers has a list as its solution.
    """
    from datasets import Dataset

    turns = turns or Wording()
    counts = {len(example.images) for example in examples}
    others = sorted({name for example in examples for name in example.columns})

    def open_rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        chosen = [examples[row] for row in batch["row"]]
        opened: dict[str, list[Any]] = {
            "prompt": [turns(example.question) for example in chosen],
            "solution": [solution_column(example) for example in chosen],
            "place": [example.place for example in chosen],
            "problem": [example.problem for example in chosen],
        }
        images = [example.open_images() for example in chosen]
        if counts == {1}:
            opened["image"] = [shown[0] for shown in images]
        elif counts != {0}:
            opened["images"] = images  # TRL 1.16 stumbles over None among images, not over []
        return opened | {name: [example.columns.get(name) for example in chosen] for name in others}

    return Dataset.from_dict({"row": list(range(len(examples)))}).with_transform(open_rows)


def solution_column(example: Example) -> str | list[str]:
    """The solution in the form of rewards: a text, or a list where several answers are right."""
    if not example.more_solutions:
        return example.solution
    return [example.solution, *example.more_solutions]


def _marks(rows: Sequence[Example]) -> list[str]:
    placed = sum(IMAGE_MARK in row.problem for row in rows)
    return [f"{placed:,} rows say by {IMAGE_MARK} where their images stand"] if placed else []


def generate_scenes(
    n: int,
    seed: int,
    palette: Palette,
    counts: tuple[int, int] = (3, 10),
    size: tuple[int, int] = (240, 160),
    questions: Questions = "all",
    sizes: Sequence[str] = tuple(SIZES),
) -> list[dict[str, Any]]:
    """`n` CLEVR-like scenes as rows: `image` (PIL, RGB), `problem`, `solution` in tags.

    `palette`: CoGenT's condition "A" or "B". `counts`: least and most objects; every number in
    between occurs equally often, so that no constant answer pays. `size`: (width, height).
    `questions` "all" asks for all items, "colour" and "shape" for those of one that occurs, "mixed"
    for any of these. `sizes`: of the objects, "small", "large" or both. Row i is the same for every
    `n` above it. Raises UserError for `sizes` that do not exist.
    """
    _check_request(n, seed, palette, counts, size)
    if not sizes or not set(sizes) <= set(SIZES):
        raise UserError(f"expected sizes among {', '.join(SIZES)}, found {tuple(sizes)}")
    return [_scene_row(index, seed, palette, counts, size, questions, sizes) for index in range(n)]


def write_imagefolder(rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write rows as generated to `folder`: PNG files and metadata.jsonl, as `read_examples` reads.

    The metadata are written last: a folder without them is not whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, row in enumerate(rows):
        name = f"{index:06d}.png"
        row["image"].save(folder / name)
        texts = {key: value for key, value in row.items() if key != "image"}
        lines.append(json.dumps({"file_name": name, **texts}, ensure_ascii=False) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def write_questions(folder: Path, count: int, seed: int) -> bool:
    """Write drawn scenes as R1-V's question files: `prompts.jsonl`, images in `images/`.

    Returns False where the same questions are there already. Raises UserError for a folder with
    anything else.
    """
    file, images = folder / "prompts.jsonl", folder / "images"
    names = [f"superCLEVR_new_{index:06d}.png" for index in range(count)]
    rows = generate_scenes(count, seed, "A")
    lines = [
        {
            "image_path": f"./images/{name}",
            "question": row["problem"],
            "ground_truth": int(extract_answer(row["solution"]) or 0),
        }
        for name, row in zip(names, rows, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return False
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"expected {folder} to be empty or not there, found files; name another")
    images.mkdir(parents=True, exist_ok=True)
    for name, row in zip(names, rows, strict=True):
        row["image"].save(images / name)
    file.write_text(text, encoding="utf-8")  # written last: a folder without it is not complete
    return True


def _tables(path: Path, split: str | None) -> list[Path]:
    """The files with rows; beside the metadata of an imagefolder nothing else counts."""
    if not path.is_dir():
        return data_files(path)
    files = [file for file in sorted(path.rglob("*")) if _is_table(file, path)]
    if split is not None:
        files = [file for file in files if split in _splits_of(file, path)]
        if not files:
            raise UserError(f"expected rows of the split {split} in {path}, found none")
    metadata = [file for file in files if file.stem == "metadata"]
    if split is None and not metadata:
        return data_files(path)
    return metadata or files


def _left_out(
    path: Path, split: str | None, tables: Sequence[Path], rows: Sequence[Example]
) -> list[str]:
    """The files of a folder that no row uses; those of other splits are left out knowingly.

    A Parquet file's images are not looked up: their paths stay in it until they are opened.
    """
    if not path.is_dir():
        return []
    images = [image for row in rows for image in row.images]
    known = all(isinstance(image, ImageFile) for image in images)
    used = {os.path.abspath(image.path) for image in images if isinstance(image, ImageFile)}
    used |= {os.path.abspath(file) for file in tables}
    return [
        str(file)
        for file in visible_files(path)
        if os.path.abspath(file) not in used
        and file.name != COMPLETE
        and not (split and is_data(file))
        and (known or file.suffix.lower() not in Image.registered_extensions())
    ]


def _is_table(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.is_file() and is_data(file)


def _splits_of(file: Path, folder: Path) -> set[str]:
    """Splits that a name on the way to `file` begins with, as train-00000-of-00007.parquet does."""
    names = file.relative_to(folder).parts
    return {re.split(r"[-_.]", name.lower(), maxsplit=1)[0] for name in names} & set(_SPLITS)


def _read_table(
    file: Path,
    columns: Mapping[str, str],
    root: Path | None,
    budget: int,
    found: Examples,
    progress: Callable[[], None],
) -> None:
    table = read_rows(file, {}, budget)
    found.bad += table.bad
    # Types from all rows: a first row without an image must not drop the images of others.
    present = {name: None for row in table.rows for name in row}
    form = form_of(file, present, columns, table.rows[:_SAMPLE])
    _note(file, form, found)
    for index, row in enumerate(table.rows):
        place = table.place(index)
        _add(found, file, place, _example(place, row, form, root or file.parent))
        progress()


def _read_parquet(
    file: Path,
    columns: Mapping[str, str],
    root: Path | None,
    found: Examples,
    progress: Callable[[], None],
) -> None:
    """Only texts are read here; images stay in the file until they are opened."""
    table = ParquetTable(file)
    sample = list(islice(table.texts(table.light), _SAMPLE))
    form = form_of(file, table.columns, columns, sample)
    _note(file, form, found, [name for name in form.others if name not in table.light])
    light = [name for name in form.light if name in table.light]
    for index, row in enumerate(table.texts(light)):
        place = f"{file}:{index + 1}"
        images: tuple[StoredImage, ...] = tuple(
            ParquetImage(table, column, index, number, root or file.parent)
            for column in form.images
            for number in range(len(images_of(table.cell(column, index))))
        )
        _add(found, file, place, _example(place, row, form, root or file.parent, images))
        progress()


def _note(file: Path, form: Form, found: Examples, heavy: Sequence[str] = ()) -> None:
    """Add notes on how a file was read; `heavy`: columns that were not read."""
    if form.turns is not None:
        found.notes.append(f"{file.name}: read as {form}")
    for column, taken, other in form.doubles:
        which = ", the shorter one" if column == "solution" else ""
        found.notes.append(
            f"{file.name}: columns {taken} and {other} may both be the {column}; took {taken}"
            f"{which}; data.columns.{column}={other} takes the other"
        )
    light = [name for name in form.others if name not in heavy and name not in RESERVED]
    for said, names in (("for rewards only, not in the prompt", light), ("not read", heavy)):
        if names:
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            found.notes.append(f"{file.name}: {said}: {shown}")


def _add(found: Examples, file: Path, place: str, outcome: Example | str) -> None:
    if isinstance(outcome, str):
        found.bad.append(BadRow(file, int(place.rpartition(":")[2]), outcome))
    else:
        found.rows.append(outcome)


def _example(
    place: str,
    row: Mapping[str, Any],
    form: Form,
    root: Path,
    images: tuple[StoredImage, ...] | None = None,
) -> Example | str:
    """The row as an example, or what is wrong with it; `images`: those of a Parquet row."""
    try:
        if images is None:
            cells = [cell for column in form.images for cell in images_of(row.get(column))]
            images = tuple(find_image(cell, root) for cell in cells)
        if not images and form.turns:
            named = images_in_turns(row.get(form.turns))
            images = tuple(find_image(image, root) for image in named)
        question, solution = read_question(row, form, len(images))
        first, *more = solutions_of(solution, form.solution or str(form.turns))
        if "<answer>" in first and extract_answer(first) is None:
            raise ValueError(
                f"expected an answer between the tags of the solution, found {first!r:.60}"
            )
        columns = {name: row.get(name) for name in form.others if name not in RESERVED}
        example = Example(
            place,
            question.text,
            first,
            images,
            tuple(more),
            question.before,
            question.is_worded,
            columns,
        )
        _ = example.sizes  # finds a broken image
    except ValueError as error:
        return str(error)
    return example


def _keep_within(budget: int, path: Path, found: Examples) -> None:
    bad, total = found.bad, len(found.bad) + len(found.rows)
    if len(bad) <= budget and found.rows:
        return
    wanted = f"at most {budget} bad rows" if len(bad) > budget else "a good row"
    raise UserError(
        f"expected {wanted} among {total} in {path}, found {len(bad)} bad; "
        f"fix them or allow for more:{indented(by_reason(bad))}"
    )


def _check_request(
    n: int, seed: int, palette: Palette, counts: tuple[int, int], size: tuple[int, int]
) -> None:
    colours_of("cube", palette)
    if n < 0 or seed < 0:
        raise UserError(f"expected a number of scenes and a seed from 0 up, found {n} and {seed}")
    if not 1 <= counts[0] <= counts[1] <= _MOST:
        raise UserError(
            f"expected counts as (least, most) within 1 to {_MOST}, found {tuple(counts)}"
        )
    if min(size) < 16:
        raise UserError(f"expected an image of at least 16 x 16 pixels, found {tuple(size)}")


def _scene_row(
    index: int,
    seed: int,
    palette: Palette,
    counts: tuple[int, int],
    size: tuple[int, int],
    questions: Questions,
    sizes: Sequence[str],
) -> dict[str, Any]:
    # Each row has its own generator, so that it does not depend on the others.
    rng = np.random.default_rng([seed, ord(palette), index])
    scene = draw_scene(rng, _count(index, seed, palette, counts), palette, sizes)
    problem, answer = _ask(rng, scene, questions)
    return {
        "image": render(scene, size),
        "problem": problem,
        "solution": f"<answer> {answer} </answer>",
    }


def _count(index: int, seed: int, palette: Palette, counts: tuple[int, int]) -> int:
    """Number of objects of row `index`: each number once a block, in a random order."""
    numbers = np.arange(counts[0], counts[1] + 1)
    block, place = divmod(index, len(numbers))
    rng = np.random.default_rng([seed, ord(palette), block, len(numbers)])
    return int(rng.permutation(numbers)[place])


def _ask(rng: np.random.Generator, scene: Scene, questions: Questions) -> tuple[str, int]:
    """Question about the scene and its answer, which is never 0."""
    kinds = ("all", "colour", "shape")
    kind = str(rng.choice(kinds)) if questions == "mixed" else questions
    if kind == "colour":
        colour = str(rng.choice(sorted({item.colour for item in scene.items})))
        found = [item for item in scene.items if item.colour == colour]
        return f"How many {colour} items are there in the image?", len(found)
    if kind == "shape":
        shape = str(rng.choice(sorted({item.shape for item in scene.items})))
        found = [item for item in scene.items if item.shape == shape]
        return f"How many {shape}s are there in the image?", len(found)
    if kind != "all":
        raise UserError(f'expected questions "all", "colour", "shape" or "mixed", found "{kind}"')
    return QUESTION, len(scene.items)
