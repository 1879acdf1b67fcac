"""Rows for GRPO: an image, a problem in words, a solution in `<answer>` tags.

`read_examples` reads what people have on disk: a folder with images and metadata (imagefolder),
Parquet with images inside, JSONL or CSV beside image files. `generate_scenes` draws CLEVR-like
scenes. Images stay where they are until they are opened.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from workloads.data.row_files import is_data
from workloads.data.rows import BadRow, data_files, read_rows
from workloads.errors import UserError
from workloads.grpo.data.images import (
    GreyPicture,
    ParquetPicture,
    ParquetPictures,
    Picture,
    find_picture,
    only_one,
)
from workloads.grpo.prompts import training_turns
from workloads.grpo.data.scenes import SIZES, Palette, Scene, colours_of, draw_scene, render

if TYPE_CHECKING:
    from datasets import Dataset

Questions = Literal["all", "colour", "shape", "mixed"]

QUESTION = "How many different items are there in the image?"
# Names under which the three columns are known, the data sets' own first.
COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "image": ("image", "images", "image_path", "file_name"),
        "problem": ("problem", "question"),
        "solution": ("solution", "answer", "ground_truth"),
    }
)
_SHOWN = 10
_MOST = 10  # more do not fit into one picture without hiding each other
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")


@dataclass(frozen=True)
class Example:
    """One row: `place` for messages, the question, the answer, and its image unless text only."""

    place: str
    problem: str
    solution: str
    picture: Picture | None

    def open_image(self) -> Image.Image:
        """The image, upright and RGB; UserError with the row's place where there is none."""
        if self.picture is None:
            raise UserError(f"{self.place}: expected an image, found a row of text only")
        try:
            return self.picture.load()
        except ValueError as error:
            raise UserError(f"{self.place}: {error}; mend or remove the row") from error


def greyed(example: Example) -> Example:
    """The example with nothing to see in its image, where it has one."""
    return replace(example, picture=GreyPicture(example.picture)) if example.picture else example


def with_pictures(examples: list[Example], which: str) -> list[Example]:
    """The examples with their `own` pictures, with each other's (`shuffled`), or `grey` ones."""
    if which == "grey":
        return [greyed(one) for one in examples]
    if which == "own":
        return examples
    pictures = [one.picture for one in examples]
    Random(0).shuffle(pictures)
    return [replace(one, picture=other) for one, other in zip(examples, pictures, strict=True)]


@dataclass
class Examples:
    """Good rows in order, and the bad ones that were left out."""

    rows: list[Example] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


def read_examples(
    path: Path,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    image_root: Path | None = None,
    budget: int = 10,
) -> Examples:
    """The rows of a file, or of a folder's files that belong to `split`.

    `columns` says which column is the `image`, `problem` and `solution`; those not named are
    found by their usual names. Paths of images count from `image_root`, else from the file that
    names them or the folder `images` beside it. Without any image column rows are text only.
    Raises UserError past `budget` bad rows, and for files that cannot be told apart.
    """
    found = Examples()
    for file in _tables(path, split):
        if file.suffix.lower() == ".parquet":
            _read_parquet(file, columns or {}, image_root, found)
        else:
            _read_table(file, columns or {}, image_root, budget, found)
    _keep_within(budget, path, found)
    return found


def training_dataset(examples: Sequence[Example]) -> "Dataset":
    """The examples as trainers take them, columns prompt, solution, place, and image with images.

    Images are opened when a row is asked for; prompts are conversations in R1-V's wording.
    """
    from datasets import Dataset

    columns = {
        "row": list(range(len(examples))),
        "solution": [example.solution for example in examples],
        "place": [example.place for example in examples],
    }
    with_images = any(example.picture for example in examples)

    def open_rows(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        chosen = [examples[row] for row in batch["row"]]
        prompts = [training_turns(one.problem, one.picture is not None) for one in chosen]
        opened = {"prompt": prompts, "solution": batch["solution"], "place": batch["place"]}
        if with_images:
            opened["image"] = [one.open_image() if one.picture else None for one in chosen]
        return opened

    return Dataset.from_dict(columns).with_transform(open_rows)


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
    `questions` "all" asks for all items, "colour" and "shape" for those of one that occurs,
    "mixed" for any of these. `sizes`: of the objects, "small", "large" or both. Row i is the same
    for every `n` above it.
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


def _is_table(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.is_file() and is_data(file)


def _splits_of(file: Path, folder: Path) -> set[str]:
    """Splits that a name on the way to `file` begins with, as train-00000-of-00007.parquet does."""
    names = file.relative_to(folder).parts
    return {re.split(r"[-_.]", name.lower(), maxsplit=1)[0] for name in names} & set(_SPLITS)


def _read_table(
    file: Path, columns: Mapping[str, str], root: Path | None, budget: int, found: Examples
) -> None:
    table = read_rows(file, {}, budget)
    found.bad += table.bad
    # Of all rows: a first one without an image must not take the others' images away.
    present = {name: None for row in table.rows for name in row}
    names = _columns(file, present, columns)
    for index, row in enumerate(table.rows):
        place = table.place(index)
        _add(found, file, place, _example(place, row, names, root or file.parent))


def _read_parquet(
    file: Path, columns: Mapping[str, str], root: Path | None, found: Examples
) -> None:
    """Only texts are read here; images stay in the file until they are opened."""
    table = ParquetPictures(file)
    names = _columns(file, table.columns, columns)
    texts = _Columns(names.problem, names.solution, image=None)
    for index, row in enumerate(table.texts([names.problem, names.solution])):
        place = f"{file}:{index + 1}"
        outcome = _example(place, row, texts, file.parent)
        if isinstance(outcome, Example) and names.image is not None:
            picture = ParquetPicture(table, names.image, index, root or file.parent)
            outcome = replace(outcome, picture=picture)
        _add(found, file, place, outcome)


def _add(found: Examples, file: Path, place: str, outcome: Example | str) -> None:
    if isinstance(outcome, str):
        found.bad.append(BadRow(file, int(place.rpartition(":")[2]), outcome))
    else:
        found.rows.append(outcome)


@dataclass(frozen=True)
class _Columns:
    """The names of the three columns in a file; no image for rows of text only."""

    problem: str
    solution: str
    image: str | None


def _columns(file: Path, present: Iterable[str], wanted: Mapping[str, str]) -> _Columns:
    names: dict[str, str | None] = {}
    present = list(present)
    for column, usual in COLUMNS.items():
        candidates = (wanted[column],) if column in wanted else usual
        names[column] = next((name for name in candidates if name in present), None)
        if names[column] is None and (column != "image" or column in wanted):
            raise UserError(
                f"{file}: expected a column {' or '.join(candidates)} for the {column}, "
                f"found {', '.join(map(str, present))}; map the columns"
            )
    return _Columns(str(names["problem"]), str(names["solution"]), names["image"])


def _example(place: str, row: Mapping[str, Any], names: _Columns, root: Path) -> Example | str:
    """The row as an example, or what is wrong with it."""
    try:
        problem, solution = _text(row, names.problem), _text(row, names.solution)
        picture = None
        if names.image is not None:
            picture = find_picture(only_one(row.get(names.image)), root)
    except ValueError as error:
        return str(error)
    return Example(place, problem, solution, picture)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    text = value
    if isinstance(value, int | float) and not isinstance(value, bool):
        # What pandas writes for a cell without anything in it is no number.
        text = str(value) if math.isfinite(value) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"column {column!r}: expected text, found {value!r:.80}")
    return text


def _keep_within(budget: int, path: Path, found: Examples) -> None:
    bad, total = found.bad, len(found.bad) + len(found.rows)
    if len(bad) <= budget and found.rows:
        return
    shown = "".join(f"\n  {row}" for row in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    wanted = f"at most {budget} bad rows" if len(bad) > budget else "a good row"
    raise UserError(
        f"expected {wanted} among {total} in {path}, found {len(bad)} bad; "
        f"mend them or allow for more:{shown}{more}"
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
        raise UserError(f"expected a picture of at least 16 x 16 pixels, found {tuple(size)}")


def _scene_row(
    index: int,
    seed: int,
    palette: Palette,
    counts: tuple[int, int],
    size: tuple[int, int],
    questions: Questions,
    sizes: Sequence[str],
) -> dict[str, Any]:
    # Each row draws from a generator of its own, so that it does not depend on the others.
    rng = np.random.default_rng([seed, ord(palette), index])
    scene = draw_scene(rng, _count(index, seed, palette, counts), palette, sizes)
    problem, answer = _ask(rng, scene, questions)
    return {
        "image": render(scene, size),
        "problem": problem,
        "solution": f"<answer> {answer} </answer>",
    }


def _count(index: int, seed: int, palette: Palette, counts: tuple[int, int]) -> int:
    """How many objects row `index` has: every number once, in an order drawn for each block."""
    numbers = np.arange(counts[0], counts[1] + 1)
    block, place = divmod(index, len(numbers))
    rng = np.random.default_rng([seed, ord(palette), block, len(numbers)])
    return int(rng.permutation(numbers)[place])


def _ask(rng: np.random.Generator, scene: Scene, questions: Questions) -> tuple[str, int]:
    """A question about the scene and its answer, which is never 0."""
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
