"""Rows for GRPO from disk and from the generator."""

import base64
import csv
import json
import pickle
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workloads.data.build_once import COMPLETE
from workloads.errors import UserError
from workloads.grpo.data import rows as data
from workloads.grpo.data.rows import (
    Example,
    generate_scenes,
    read_examples,
    training_dataset,
    write_imagefolder,
)
from workloads.grpo.data.scenes import COLOURS, colours_of, draw_scene, visible_pixels
from workloads.grpo.prompts import image_turns, text_turns

pytestmark = pytest.mark.unit

SMALL: dict[str, Any] = {"size": (48, 32)}
COOL = {"red", "green", "purple", "cyan"}
WARM = {"gray", "blue", "brown", "yellow"}


def image_bytes(path: Path, size: tuple[int, int] = (20, 10), **options: Any) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(path, **options)
    return path.read_bytes()


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sizes(rows: list[Example]) -> list[tuple[int, int] | str]:
    """Each image's upright (width, height), or what is wrong with it."""
    found: list[tuple[int, int] | str] = []
    for row in rows:
        try:
            found.append(row.images[0].size())
        except ValueError as error:
            found.append(str(error))
    return found


# The generator


def test_scenes_are_rows_and_the_same_for_a_seed() -> None:
    rows = generate_scenes(8, 3, "A", **SMALL)
    again = generate_scenes(4, 3, "A", **SMALL)
    assert [set(row) for row in rows] == [{"image", "problem", "solution"}] * 8
    assert [row["image"].tobytes() for row in again] == [row["image"].tobytes() for row in rows[:4]]
    assert [row["solution"] for row in again] == [row["solution"] for row in rows[:4]]
    other = generate_scenes(4, 4, "A", **SMALL)
    assert other[0]["image"].tobytes() != rows[0]["image"].tobytes()
    assert {row["problem"] for row in rows} == {"How many different items are there in the image?"}
    assert rows[0]["image"].size == (48, 32) and rows[0]["image"].mode == "RGB"


def test_every_count_occurs_equally_often() -> None:
    rows = generate_scenes(16, 11, "B", **SMALL)
    assert Counter(row["solution"] for row in rows) == {
        f"<answer> {count} </answer>": 2 for count in range(3, 11)
    }
    few = generate_scenes(4, 11, "B", counts=(1, 2), **SMALL)
    assert (
        sorted(row["solution"] for row in few)
        == ["<answer> 1 </answer>"] * 2 + ["<answer> 2 </answer>"] * 2
    )


@pytest.mark.parametrize(("palette", "cubes", "cylinders"), [("A", WARM, COOL), ("B", COOL, WARM)])
def test_palettes_of_cogent(palette: Any, cubes: set[str], cylinders: set[str]) -> None:
    assert set(colours_of("cube", palette)) == cubes
    assert set(colours_of("cylinder", palette)) == cylinders
    assert set(colours_of("sphere", palette)) == set(COLOURS)
    found: dict[str, set[str]] = {"cube": set(), "cylinder": set(), "sphere": set()}
    for seed in range(6):
        for item in draw_scene(np.random.default_rng(seed), 8, palette).items:
            found[item.shape].add(item.colour)
    assert found["cube"] <= cubes and found["cylinder"] <= cylinders
    assert found["sphere"] & cubes and found["sphere"] & cylinders


def test_no_object_is_hidden_or_cut_off() -> None:
    for seed in range(5):
        scene = draw_scene(np.random.default_rng(seed), 10, "A")
        for seen, alone in visible_pixels(scene, (240, 160)):
            assert seen >= 0.5 * alone
            assert seen >= 0.001 * 240 * 160
        # The square picture shows the same and more around it: an object that the other one
        # cuts off at its upper or lower rim would cover more pixels here.
        wide = [own for _, own in visible_pixels(scene, (240, 160))]
        square = [own for _, own in visible_pixels(scene, (240, 240))]
        assert wide == square


def test_pictures_show_the_colours() -> None:
    """One red rubber sphere or the like: its hue is the strongest in the middle of its pixels."""
    for row in generate_scenes(6, 0, "A", counts=(3, 3), questions="colour", size=(96, 64)):
        colour = row["problem"].split()[2]
        pixels = np.asarray(row["image"], dtype=float).reshape(-1, 3)
        target = np.array(COLOURS[colour], dtype=float)
        if colour == "gray":
            continue  # the floor is gray as well
        hue = target - target.mean()
        tinted = pixels - pixels.mean(axis=1, keepdims=True)
        alike = tinted @ hue / (np.linalg.norm(hue) * np.maximum(np.linalg.norm(tinted, axis=1), 1))
        assert ((alike > 0.9) & (np.linalg.norm(tinted, axis=1) > 15)).sum() > 8, row["problem"]


@pytest.mark.parametrize("questions", ["colour", "shape", "mixed"])
def test_questions_about_some_of_the_items(questions: Any) -> None:
    rows = generate_scenes(12, 2, "A", questions=questions, **SMALL)
    counts = [int(row["solution"].split()[1]) for row in rows]
    assert all(1 <= count <= 10 for count in counts)
    assert len({row["problem"] for row in rows}) > 2
    assert all(row["problem"].startswith("How many ") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0, "C"), 'palette "A" or "B"'),
        ((-1, 0, "A"), "from 0 up"),
        ((1, -1, "A"), "from 0 up"),
        ((1, 0, "A", (0, 3)), "within 1 to 10"),
        ((1, 0, "A", (3, 11)), "within 1 to 10"),
        ((1, 0, "A", (3, 4), (4, 4)), "16 x 16"),
        ((1, 0, "A", (3, 3), (48, 32), "size"), 'found "size"'),
    ],
)
def test_requests_that_cannot_be_met(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate_scenes(*arguments)


# Rows from disk


def test_what_the_generator_writes_is_read_back(tmp_path: Path) -> None:
    rows = generate_scenes(3, 1, "A", **SMALL)
    write_imagefolder(rows, tmp_path)
    found = read_examples(tmp_path)
    assert not found.bad
    assert [row.solution for row in found.rows] == [row["solution"] for row in rows]
    assert found.rows[1].open_images()[0].tobytes() == rows[1]["image"].tobytes()
    assert sizes(found.rows) == [(48, 32)] * 3


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Two files of the split train and one of test, several groups of rows, as the hub has them."""
    folder = tmp_path / "clevr" / "data"
    folder.mkdir(parents=True)
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 5), ("test-0", 90)):
        rows = [
            {
                "image": {"bytes": image_bytes(tmp_path / "x.png", (first + i + 1, 7)), "path": ""},
                "problem": f"question {first + i}",
                "solution": f"<answer> {first + i} </answer>",
            }
            for i in range(5)
        ]
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)
    return folder.parent


def test_parquet_by_split(parquet: Path) -> None:
    rows = read_examples(parquet, split="train").rows
    assert [row.problem for row in rows] == [f"question {i}" for i in range(10)]
    order = [7, 0, 4, 9, 3, 1]
    assert [rows[i].open_images()[0].size for i in order] == [(i + 1, 7) for i in order]
    assert rows[6].place.endswith("train-00001-of-00002.parquet:2")
    copied = pickle.loads(pickle.dumps(rows[6]))
    assert copied.open_images()[0].size == (7, 7)
    with pytest.raises(UserError, match="split"):
        read_examples(parquet)
    with pytest.raises(UserError, match="split valid"):
        read_examples(parquet, split="valid")


def test_as_trainers_take_it(parquet: Path) -> None:
    dataset = training_dataset(read_examples(parquet, split="train").rows)
    assert len(dataset) == 10
    assert set(dataset[3]) == {"prompt", "solution", "place", "problem", "image"}
    assert dataset[3]["image"].size == (4, 7)
    assert dataset[3]["prompt"] == image_turns("question 3")
    shuffled = dataset.shuffle(seed=1).select(range(4))
    for row in shuffled:
        number = int(row["solution"].split()[1])
        assert row["image"].size == (number + 1, 7)
    texts = training_dataset([Example("a:1", "1+1?", "2")])
    assert texts[0] == {
        "prompt": text_turns("1+1?"),
        "solution": "2",
        "place": "a:1",
        "problem": "1+1?",
    }


def test_parquet_with_damage(parquet: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.parquet"
    whole = image_bytes(tmp_path / "ok.png")
    cells = [whole, whole[:55], b"no image", None, [whole, whole]]
    rows = [
        {"images": cell if isinstance(cell, list) else [cell], "question": "q", "answer": "4"}
        for cell in cells
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    found = read_examples(file)
    assert [len(row.images) for row in found.rows] == [1, 2]
    assert sizes(found.rows[:1]) == [(20, 10)]
    assert [(bad.line, bad.reason[:22]) for bad in found.bad] == [
        (2, "expected a whole image"),
        (3, "expected an image, fou"),
        (4, "expected the path of a"),
    ]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"bad\.parquet: expected a whole Parquet file"):
        read_examples(file)


def test_jsonl_beside_images(tmp_path: Path) -> None:
    image_bytes(tmp_path / "images" / "a.png")
    image_bytes(tmp_path / "b.jpg", (30, 40))
    rows = [
        {"image_path": "./images/a.png", "question": "How many?", "ground_truth": 4},
        {"image_path": "a.png", "question": "How many?", "ground_truth": "140°"},
        {"image_path": str(tmp_path / "b.jpg"), "question": "How many?", "ground_truth": 2.5},
    ]
    write_lines(tmp_path / "test.jsonl", rows)
    found = read_examples(tmp_path)
    assert [row.solution for row in found.rows] == ["4", "140°", "2.5"]
    assert sizes(found.rows) == [(20, 10), (20, 10), (30, 40)]


def test_csv_and_text_only(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["q", "a"], ["1+1?", "2"], ["2+2?", "4"]])
    found = read_examples(tmp_path / "rows.csv", columns={"problem": "q", "solution": "a"})
    assert [(row.problem, row.solution, row.images) for row in found.rows] == [
        ("1+1?", "2", ()),
        ("2+2?", "4", ()),
    ]
    assert found.rows[0].open_images() == []


def test_bad_rows_are_named(tmp_path: Path) -> None:
    image_bytes(tmp_path / "a.png")
    good = {"image": "a.png", "problem": "q", "solution": "1"}
    rows = [good, {**good, "image": "gone.png"}, {**good, "problem": " "}, {**good, "image": None}]
    file = tmp_path / "rows.jsonl"
    write_lines(file, rows)
    with file.open("a") as lines:
        lines.write("{broken\n")
    found = read_examples(file)
    # A row without an image is one of text; a row with one that is not there is bad.
    assert [len(row.images) for row in found.rows] == [1, 0]
    assert sorted((bad.line, bad.reason[:25]) for bad in found.bad) == [
        (2, f"expected an image at {tmp_path}"[:25]),
        (3, "column 'problem': expecte"),
        (5, "invalid JSON at column 2:"),
    ]
    with pytest.raises(UserError, match=r"at most 2 bad rows among 5 .*found 3 bad(.|\n)*:3: "):
        read_examples(file, budget=2)


def test_columns_that_are_missing(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"problem": "q", "label": "1"}])
    with pytest.raises(UserError, match="solution or answer or ground_truth"):
        read_examples(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="a column picture for the image"):
        read_examples(tmp_path / "rows.jsonl", columns={"solution": "label", "image": "picture"})


def test_images_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image_bytes(tmp_path / "a.jpg", (40, 20), exif=exif)
    image_bytes(tmp_path / "b.png", (40, 20))
    write_lines(
        tmp_path / "rows.jsonl",
        [{"image": name, "problem": "q", "solution": "1"} for name in ("a.jpg", "b.png")],
    )
    rows = read_examples(tmp_path).rows
    assert sizes(rows) == [(20, 40), (40, 20)]
    assert [row.open_images()[0].size for row in rows] == [(20, 40), (40, 20)]


def test_palettes_and_alpha_become_rgb(tmp_path: Path) -> None:
    for mode in ("P", "LA", "RGBA", "I;16", "1"):
        Image.new(mode, (8, 8)).save(tmp_path / "a.png")
        image = data.find_image("a.png", tmp_path)
        assert image.load().mode == "RGB"


def turned(degrees_code: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = degrees_code
    return exif


def behind_the_pixels(png: bytes) -> bytes:
    """A PNG with its eXIf chunk moved to the end, where some cameras write it."""
    chunks, place = [], 8
    while place < len(png):
        size = int.from_bytes(png[place : place + 4], "big") + 12
        chunks.append(png[place : place + size])
        place += size
    moved = [chunk for chunk in chunks if chunk[4:8] == b"eXIf"]
    assert moved
    rest = [chunk for chunk in chunks if chunk[4:8] != b"eXIf"]
    return png[:8] + b"".join([*rest[:-1], *moved, rest[-1]])


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "png at its end", "webp", "tiff"])
def test_the_size_is_that_of_the_upright_image(tmp_path: Path, kind: str, code: int) -> None:
    path = tmp_path / f"a.{kind.split()[0]}"
    content = image_bytes(path, (40, 20), exif=turned(code))
    path.write_bytes(behind_the_pixels(content) if "end" in kind else content)
    image = data.find_image(path.name, tmp_path)
    assert image.size() == image.load().size == ((20, 40) if code >= 5 else (40, 20))


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp", "bmp", "tiff", "ppm", "tga"])
def test_an_image_that_was_cut_off_is_found_by_its_size_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    image = data.find_image(path.name, tmp_path)
    assert image.size() == (90, 80)
    for share in (0.3, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="expected a(?: whole|n) image"):
            image.size()
    path.write_bytes(whole + b"what a phone adds" * 1000)
    assert image.size() == image.load().size == (90, 80)


def test_a_png_that_is_damaged_in_its_middle_is_found_by_its_size_alone(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = bytearray((tmp_path / "a.png").read_bytes())
    whole[len(whole) // 2] ^= 0x10
    (tmp_path / "a.png").write_bytes(whole)
    image = data.find_image("a.png", tmp_path)
    for look in (image.size, image.load):
        with pytest.raises(ValueError, match="expected a whole image"):
            look()
    # A wrong checksum alone takes nothing from the pixels.
    whole[len(whole) // 2] ^= 0x10
    whole[len(whole) - 13] ^= 0x10
    (tmp_path / "a.png").write_bytes(whole)
    assert image.size() == image.load().size == (90, 80)


@pytest.mark.parametrize("code", range(1, 9))
def test_images_are_turned_as_pillow_turns_them_whatever_else_their_exif_holds(
    tmp_path: Path, code: int
) -> None:
    from PIL import ImageOps

    pixels = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif = turned(code)
    exif[0x010F] = "a maker"
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    path = tmp_path / "a.jpg"
    image = data.find_image("a.jpg", tmp_path)
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert image.load().tobytes() == expected.tobytes()
    # A text where a page number belongs: Pillow's own function cannot write it again.
    content = path.read_bytes()
    assert content.count(b"\x01\x0f\x00\x02") == 1
    path.write_bytes(content.replace(b"\x01\x0f\x00\x02", b"\x01\x29\x00\x02"))
    if code > 1:
        with pytest.raises(struct.error):
            ImageOps.exif_transpose(Image.open(path))
    assert image.size() == image.load().size
    assert image.load().tobytes() == expected.tobytes()


def test_names_and_bytes_of_an_image_in_their_many_forms(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a b.png")
    content = (tmp_path / "a b.png").read_bytes()
    text = base64.b64encode(content).decode()
    lines = "\n".join(text[place : place + 76] for place in range(0, len(text), 76))
    of_addresses = base64.urlsafe_b64encode(content).decode().rstrip("=")
    for value in (
        "a b.png",
        " a b.png\n",
        "/elsewhere/a b.png",
        f"file://{tmp_path}/a%20b.png",
        lines,
        of_addresses,
        f"data:image/png;base64,{lines}",
        f"DATA:image/png;base64, {of_addresses}",
        {"bytes": text},
    ):
        assert np.array_equal(np.asarray(data.find_image(value, tmp_path).load()), noise), value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x" * 5000, "expected an image at .*xxx, found no file there"),
        ("SUkqAAgAAAA" + "A" * 5000, "expected an image at"),  # a TIFF in base64
        ("HTTP://example.org/a.png", "found the address HTTP://example.org/a.png; download"),
        ("s3://bucket/a.png", "found the address s3://bucket/a.png; download"),
        ("data:image/svg+xml;utf8,<svg/>", "expected an image in base64"),
        ("a\0b.png", "expected an image at"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0mif1heic", "found a HEIC image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "found a JPEG XL image"),
        (b"PK\x03\x04", "found an archive"),
        (b'{"error": "not found"}', 'found bytes of no known format, b\'{"error": "not f\''),
    ],
)
def test_what_is_no_image_is_named(value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        data.find_image(value, tmp_path).load()


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "jpg by XMP"])
def test_an_image_is_turned_once(tmp_path: Path, kind: str) -> None:
    """transformers and others turn an image by what is left of its EXIF."""
    from PIL import ImageOps

    pixels = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind.split()[0]}"
    if "XMP" in kind:
        packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
        Image.fromarray(pixels).save(path, xmp=packet)
    else:
        Image.fromarray(pixels).save(path, exif=turned(6))
    image = data.find_image(path.name, tmp_path).load()
    assert image.size == (16, 24)
    again = ImageOps.exif_transpose(image)
    assert again.size == image.size and again.tobytes() == image.tobytes()


def test_a_first_row_without_an_image_takes_no_other_image_away(tmp_path: Path) -> None:
    image_bytes(tmp_path / "a.png")
    text = {"problem": "1+1?", "solution": "2"}
    write_lines(tmp_path / "rows.jsonl", [text, {**text, "image": "a.png"}])
    found = read_examples(tmp_path)
    assert [bool(row.images) for row in found.rows] == [False, True]
    assert not found.bad


def test_cells_without_a_solution_are_no_numbers(tmp_path: Path) -> None:
    cells = [{"problem": "q", "solution": value} for value in (1.5, float("nan"), 7.0)]
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "rows.parquet")
    found = read_examples(tmp_path / "rows.parquet")
    assert [row.solution for row in found.rows] == ["1.5", "7.0"]
    assert [bad.line for bad in found.bad] == [2]


# L-F6: what lies in a folder and is not used


def test_the_files_of_a_folder_that_no_row_uses_are_named(tmp_path: Path) -> None:
    """L-F6 for GRPO: other tables beside metadata, other kinds of files, images of no row."""
    for name in ("a.png", "b.png"):
        image_bytes(tmp_path / name)
    row = {"file_name": "a.png", "problem": "How many?", "solution": "1"}
    write_lines(tmp_path / "metadata.jsonl", [row])
    (tmp_path / COMPLETE).write_text("{}")  # of drawn scenes
    assert read_examples(tmp_path).notes == [f"files left out: {tmp_path / 'b.png'}"]
    write_lines(tmp_path / "more.jsonl", [{"problem": "1 + 1?", "solution": "2"}])
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    (told,) = read_examples(tmp_path).notes
    assert all(name in told for name in ("b.png", "more.jsonl", "rows.xlsx"))
    assert "a.png" not in told


def test_files_of_other_splits_are_left_out_knowingly(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [{"problem": "1 + 1?", "solution": "2"}])
    assert not read_examples(tmp_path, split="train").notes
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    (told,) = read_examples(tmp_path, split="train").notes
    assert "rows.xlsx" in told and "test.jsonl" not in told
