"""Rows in the forms of R1-V, EasyR1, VLM-R1, ms-swift and verl; marks in questions. Case G-F7."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workloads.errors import UserError
from workloads.grpo.data.remarks import describe_images, describe_solutions
from workloads.grpo.data.rows import (
    Example,
    Examples,
    read_examples,
    training_dataset,
)
from workloads.grpo.prompts import R1_SYSTEM, TRAINING, Question, Wording

pytestmark = pytest.mark.unit
GOOD = {"image": "a.png", "problem": "How many?", "solution": "3"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with three images, one of them blank, and one that is broken."""
    for number, name in enumerate(("a.png", "b.png", "images/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = Image.new("RGB", (72 + number, 36), (200, 0, 0))
        image.putpixel((1, 1), (0, 0, 0))
        image.save(tmp_path / name)
    Image.new("RGB", (8, 8)).save(tmp_path / "blank.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    return tmp_path


def read(home: Path, *rows: dict[str, Any], **options: Any) -> Examples:
    path = home / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path, image_root=home, **options)


def one(home: Path, row: dict[str, Any]) -> Example:
    (example,) = read(home, row).rows
    return example


def parts(example: Example, wording: Wording | None = None) -> Any:
    return (wording or Wording())(example.question)[-1]["content"]


IMAGE = {"type": "image"}


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    "problem", ["How many?", "<image>How many?", "<image>\nHow many?", "<|image_pad|>How many?"]
)
def test_a_mark_before_the_question_is_an_image_before_the_question(
    home: Path, problem: str
) -> None:
    """G-F7: no seven tokens of junk in the prompt."""
    found = parts(one(home, {**GOOD, "problem": problem}))
    assert found == [IMAGE, text(TRAINING.replace("{question}", "How many?"))]


def test_marks_are_where_images_stand(home: Path) -> None:
    """Several images in a prompt, in the form of EasyR1 and geometry3k."""
    row = {"images": ["a.png", "b.png"], "problem": "Is <image> in <image>?", "answer": "no"}
    example = one(home, row)
    plain = Wording(with_image="{question}")
    expected = [text("Is "), IMAGE, text(" in "), IMAGE, text("?")]
    assert parts(example, plain) == expected
    assert [image.size for image in example.open_images()] == [(72, 36), (73, 36)]
    unmarked = one(home, {**row, "problem": "The same?"})
    assert parts(unmarked, plain) == [IMAGE, IMAGE, text("The same?")]
    notes = read(home, row).notes
    assert notes == ["1 rows say by <image> where their images stand"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**GOOD, "problem": "<image><image>?"}, "found 2 marks and 1 images"),
        ({"problem": "<image>?", "solution": "3"}, "found 1 marks and 0 images"),
        ({**GOOD, "image": "none.png"}, "expected an image at"),
        ({**GOOD, "image": "broken.png"}, "expected an image, found bytes of no known format"),
        ({**GOOD, "image": "https://example.org/a.png"}, "found the address https://example.org"),
        ({**GOOD, "image": "data:image/png;base64,@@"}, "expected an image in base64"),
        ({**GOOD, "solution": "<answer></answer>"}, "between the tags of the solution"),
        ({**GOOD, "solution": []}, "expected text, found []"),
        ({"messages": "hello", "solution": "1", "problem": None}, "expected text, found None"),
    ],
)
def test_one_fault_has_one_outcome(home: Path, row: dict[str, Any], reason: str) -> None:
    """G-F7: in JSON and in Parquet a missing or broken image is a bad row within the budget."""
    found = read(home, GOOD, row)
    assert len(found.rows) == 1 and found.bad[0].line == 2
    assert reason in found.bad[0].reason and len(found.bad[0].reason) < 400
    with pytest.raises(UserError, match="expected at most 0 bad rows"):
        read(home, GOOD, row, budget=0)
    try:
        pq.write_table(pa.Table.from_pylist([GOOD, row]), home / "rows.parquet")
    except (pa.ArrowException, TypeError):
        return
    again = read_examples(home / "rows.parquet", image_root=home)
    assert [(bad.line, bad.reason[:40]) for bad in again.bad] == [
        (bad.line, bad.reason[:40]) for bad in found.bad
    ]


def test_a_conversation_without_a_question_is_a_bad_row(home: Path) -> None:
    bad = {**MESSAGES, "messages": [{"role": "system", "content": "x"}]}
    early = {**MESSAGES, "messages": [*MESSAGES["messages"], {"role": "user", "content": "And?"}]}
    found = read(home, MESSAGES, bad, early)
    assert [row.reason.partition(": ")[2][:30] for row in found.bad] == [
        "expected a question of the use",
        "expected images in the last tu",
    ]


def test_a_row_of_text_among_rows_with_images(home: Path) -> None:
    found = read(home, GOOD, {"problem": "2 + 5 = ?", "solution": "7"})
    dataset = training_dataset(found.rows)
    assert [len(row["images"]) for row in dataset] == [1, 0]
    assert dataset[1]["prompt"] == [
        {"role": "system", "content": R1_SYSTEM},
        {"role": "user", "content": "2 + 5 = ?"},
    ]


def test_paths_of_another_machine_are_found_by_their_ends(home: Path) -> None:
    """G-F7: one rule in training and evaluation."""
    found = read(
        home, {**GOOD, "image": "/other/place/images/c.png"}, {**GOOD, "image": "/x/c.png"}
    )
    assert [row.sizes for row in found.rows] == [((74, 36),), ((74, 36),)]


def test_images_in_base64_do_not_fill_a_message(home: Path) -> None:
    """G-F14: the whole of a data address was printed."""
    coded = base64.b64encode((home / "a.png").read_bytes()).decode()
    large = Image.effect_noise((64, 64), 50)
    large.save(home / "large.png")
    plain = base64.b64encode((home / "large.png").read_bytes()).decode()
    rows = [{**GOOD, "image": f"data:image/png;base64,{coded}"}, {**GOOD, "image": plain}]
    assert [row.sizes for row in read(home, *rows).rows] == [((72, 36),), ((64, 64),)]


CONVERSATIONS = {
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>How many?"},
        {"from": "gpt", "value": "<answer> 3 </answer>"},
    ],
}
MESSAGES = {
    "images": ["a.png"],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>How many?"},
    ],
    "solution": "3",
}
VERL = {
    "data_source": "clevr",
    "images": ["a.png"],
    "prompt": [{"role": "user", "content": "<image>How many?"}],
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"index": 7},
}


def test_conversations_of_vlm_r1(home: Path) -> None:
    example = one(home, CONVERSATIONS)
    assert (example.problem, example.solution) == ("<image>How many?", "<answer> 3 </answer>")
    assert parts(example) == [IMAGE, text(TRAINING.replace("{question}", "How many?"))]


def test_messages_of_ms_swift(home: Path) -> None:
    example = one(home, MESSAGES)
    turns = Wording()(example.question)
    assert turns[0] == {"role": "system", "content": "Be brief."}
    assert turns[1]["content"] == [IMAGE, text("How many?")]
    said = {**MESSAGES, "messages": [*MESSAGES["messages"], {"role": "assistant", "content": "4"}]}
    del said["solution"]
    assert one(home, said).solution == "4"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_prompts_of_verl(home: Path, kind: str) -> None:
    if kind == "parquet":
        image = {"bytes": (home / "a.png").read_bytes(), "path": None}
        pq.write_table(pa.Table.from_pylist([{**VERL, "images": [image]}]), home / "rows.parquet")
        found = read_examples(home / "rows.parquet")
    else:
        found = read(home, VERL)
    (example,) = found.rows
    assert (example.solution, example.sizes) == ("3", ((72, 36),))
    assert parts(example) == [IMAGE, text("How many?")]
    assert example.columns["data_source"] == "clevr"
    assert example.columns["extra_info"] == {"index": 7}
    assert found.notes[0].endswith("read as prompt → reward_model, images")
    own = Wording("Look. {question}", "Look. {question}", is_own=True)
    assert parts(example, own) == [text("Look. "), IMAGE, text("How many?")]


def test_several_right_answers_and_boxes(home: Path) -> None:
    found = read(home, {**GOOD, "solution": ["3", "three"]}, {**GOOD, "solution": [1, 2, 30, 40]})
    dataset = training_dataset(found.rows)
    assert [row["solution"] for row in dataset] == [["3", "three"], "[1, 2, 30, 40]"]


def test_the_shorter_of_two_solutions_is_taken_and_told(home: Path) -> None:
    """G-F3: a worked-out text beside the answer."""
    row = {"problem": "?", "solution": "First 1 + 1 = 2, then 2 + 1 = 3.", "answer": "3"}
    found = read(home, row)
    assert found.rows[0].solution == "3"
    assert "columns answer and solution may both be the solution; took answer" in found.notes[0]
    other = read(home, row, columns={"solution": "solution"})
    assert other.rows[0].solution.startswith("First")
    assert not any("may both" in note for note in other.notes)


def test_other_columns_go_to_rewards(home: Path) -> None:
    """G-F9: every other column, but for names that the trainer itself uses."""
    row = {**GOOD, "level": 4, "prompts": "x", "trainer_state": "y"}
    (example,) = read(home, row).rows
    assert dict(example.columns) == {"level": 4}
    assert training_dataset([example])[0]["level"] == 4


def test_a_prompt_of_ones_own() -> None:
    """G-F8: a template for every row, and a system prompt."""
    own = Wording("Q: {question}", "Q: {question}", system="S", text_system=None, is_own=True)
    system = {"role": "system", "content": "S"}
    assert own(Question("1?")) == [system, {"role": "user", "content": "Q: 1?"}]
    seen = own(Question("1?", images=1))
    assert seen == [system, {"role": "user", "content": [IMAGE, text("Q: 1?")]}]
    placed = Wording("Q: {question} <image>", is_own=True)
    assert placed(Question("1?", images=1))[0]["content"] == [text("Q: 1? "), IMAGE]


def test_what_there_is_to_say_of_solutions() -> None:
    """G-F3: golds with several numbers, none, or of more than 80 characters, over all rows."""
    rows = [Example(f"a:{n}", "?", said) for n, said in enumerate(["3", "3, 4", "blue", "x" * 81])]
    assert [line.partition(";")[0] for line in describe_solutions(rows)] == [
        "1 of 4 solutions hold several values, all of which an answer has to name",
        "2 of 4 solutions hold no value where others do",
        "1 of 4 solutions are longer than 80 characters",
    ]
    assert describe_solutions(rows[2:3]) == []


def test_images_of_one_colour_are_told(home: Path) -> None:
    """G-F1; values of 12 bits in a file of 16 are nearly black."""
    dark = np.linspace(0, 4095, 60).astype("uint16")[None].repeat(40, 0)
    Image.fromarray(dark).save(home / "dark.png")
    (told,) = describe_images(read(home, {**GOOD, "image": "dark.png"}).rows, 10)
    assert told.startswith("1 of 1 rows looked at have an image of one colour, or nearly so")
    found = read(home, GOOD, {**GOOD, "image": "blank.png"})
    (line,) = describe_images(found.rows, 10)
    assert line.startswith("1 of 2 rows looked at have an image of one colour, or nearly so")
    assert line.endswith("rows.jsonl:2") and describe_images(found.rows[:1], 10) == []


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_images_with_several_frames_are_told(home: Path, kind: str) -> None:
    """G-F1: the first one is shown."""
    first, second = Image.open(home / "a.png"), Image.new("RGB", (72, 36), (0, 200, 0))
    first.save(home / f"moving.{kind}", save_all=True, append_images=[second])
    found = read(home, GOOD, {**GOOD, "image": f"moving.{kind}"})
    (line,) = describe_images(found.rows, 10)
    assert line.startswith("1 of 2 rows looked at have an image with several frames or pages")
    assert found.rows[1].open_images()[0].getpixel((9, 9))[0] > 150  # type: ignore[index]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found an empty file; copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "`git lfs pull` fetches the image"),
        (b"<!DOCTYPE html><html>", "found a web page; download it again"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "found an SVG drawing; convert it to PNG"),
        (b"%PDF-1.7", "found a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "found a HEIC image; convert it to JPEG"),
        (b"\0\0\0\x18ftypisom", "found a video"),
    ],
)
def test_what_stands_in_place_of_an_image_is_named(home: Path, content: bytes, said: str) -> None:
    (home / "other.png").write_bytes(content)
    (bad,) = read(home, GOOD, {**GOOD, "image": "other.png"}).bad
    assert said in bad.reason


PARTS = {"role": "user", "content": [IMAGE, text("How many?")]}
QWEN = {"role": "user", "content": [{"type": "image", "image": "a.png"}, text("How many?")]}
OPENAI = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, text("How many?")],
}


@pytest.mark.parametrize("turn", [PARTS, QWEN, OPENAI], ids=["TRL", "Qwen", "OpenAI"])
def test_images_that_the_parts_of_a_turn_name(home: Path, turn: dict[str, Any]) -> None:
    row = {"messages": [turn], "solution": "3"} | ({"image": "a.png"} if turn is PARTS else {})
    example = one(home, row)
    assert parts(example) == [IMAGE, text("How many?")] and example.sizes == ((72, 36),)
    found = read(home, GOOD | {"messages": None}, {"messages": [PARTS], "solution": "3"}, row)
    assert [bad.line for bad in found.bad] == [2, 3]  # of a file whose rows have `problem`


@pytest.mark.parametrize("mark", ["<image 1>", "<image1>", "<|image_1|>", "<image>\n", "[IMG]"])
def test_marks_as_others_write_them(home: Path, mark: str) -> None:
    assert parts(one(home, {**GOOD, "problem": f"{mark}How many?"}), Wording("{question}")) == [
        IMAGE,
        text("How many?"),
    ]


def test_numbered_marks_have_to_be_in_order(home: Path) -> None:
    row = {"images": ["a.png", "b.png"], "answer": "A"}
    right, wrong = "Is <image 1> <image 2>?", "Is <image 2> <image 1>?"
    found = read(home, {**row, "problem": right}, {**row, "problem": wrong})
    assert [part["type"] for part in parts(found.rows[0], Wording("{question}"))][1::2] == [
        "image",
        "image",
    ]
    assert "expected marks of images from <image 1> in order, each once, found 2, 1" in (
        found.bad[0].reason
    )


def test_several_marks_at_the_beginning_are_images_before_the_question(home: Path) -> None:
    row = {"images": ["a.png", "b.png"], "problem": "<image>\n<image>\nSame?", "answer": "no"}
    assert parts(one(home, row), Wording("{question}")) == [IMAGE, IMAGE, text("Same?")]


def test_videos_are_named(home: Path) -> None:
    found = read(home, GOOD, {"videos": ["v.mp4"], "problem": "<video>What?", "solution": "3"})
    assert "expected images, found the mark of a video, <video>" in found.bad[0].reason
    assert "rows.jsonl: for rewards only, not in the prompt: videos" in found.notes


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_for_each_image(home: Path, kind: str) -> None:
    """MMMU: image_1 to image_7, empty where there are fewer."""
    names = ["image_10", "image_1", "image_2"]
    row = {"question": "Is <image 1> <image 2>?", "answer": "A", "options": "['A', 'B']"}
    if kind == "parquet":
        cells = [None, *({"bytes": (home / f"{name}.png").read_bytes()} for name in "ab")]
        table = pa.Table.from_pylist([row | dict(zip(names, cells, strict=True))])
        pq.write_table(table, home / "rows.parquet")
        found = read_examples(home / "rows.parquet")
    else:
        found = read(home, row | dict(zip(names, [None, "a.png", "b.png"], strict=True)))
    assert [image.size for image in found.rows[0].open_images()] == [(72, 36), (73, 36)]
    assert f"rows.{kind}: for rewards only, not in the prompt: options" in found.notes


def test_lists_as_python_writes_them_in_a_table(home: Path) -> None:
    (home / "rows.csv").write_text(
        "images,messages,solution\n"
        "\"['a.png', 'b.png']\",\"[{'role': 'user', 'content': 'Same?'}]\",no\n"
        "\"['a.png']\",\"[{'role': 'user', 'content'\",no\n"
    )
    found = read_examples(home / "rows.csv")
    assert [len(row.images) for row in found.rows] == [2] and found.rows[0].problem == "Same?"
    assert "column 'messages': expected a list of turns, found" in found.bad[0].reason


def test_a_question_of_its_own_comes_before_a_conversation(home: Path) -> None:
    """OpenR1: problem, solution, answer and messages; what was chosen is told."""
    messages = [{"role": "user", "content": "Told?"}, {"role": "assistant", "content": "3"}]
    row = {"problem": "How many?", "solution": "1 + 2 = 3", "answer": "3", "messages": messages}
    found = read(home, row)
    assert (found.rows[0].problem, found.rows[0].is_worded) == ("How many?", False)
    assert found.notes[0].endswith("took problem; data.columns.problem=messages takes the other")
    other = read(home, row, columns={"problem": "messages", "solution": "answer"})
    assert (other.rows[0].problem, other.rows[0].is_worded) == ("Told?", True)


def test_two_columns_of_images_and_a_solution_without_an_answer(home: Path) -> None:
    found = read(home, {**GOOD, "images": ["a.png", "b.png"]}, {**GOOD, "solution": {"box": [1]}})
    assert len(found.rows[0].images) == 1
    assert "rows.jsonl: columns image and images may both be the image; took image; " in (
        "".join(found.notes)
    )
    reason = "column 'solution': expected ground_truth, solution or answer in it, found box"
    assert [bad.reason for bad in found.bad] == [reason]


def test_paths_of_windows(home: Path) -> None:
    assert one(home, {**GOOD, "image": "C:\\data\\images\\c.png"}).sizes == ((74, 36),)
