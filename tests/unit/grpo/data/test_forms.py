"""Rows in the forms of R1-V, EasyR1, VLM-R1, ms-swift and verl; marks in questions. Case G-F7."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workloads.errors import UserError
from workloads.grpo.data.rows import (
    Example,
    Examples,
    blank_images,
    read_examples,
    training_dataset,
)
from workloads.grpo.data.solutions import describe_solutions
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
    assert other.rows[0].solution.startswith("First") and not other.notes


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
    """G-F1"""
    found = read(home, GOOD, {**GOOD, "image": "blank.png"})
    (line,) = blank_images(found.rows, 10)
    assert line.startswith("1 of 2 rows looked at have an image of one colour")
    assert line.endswith("rows.jsonl:2") and blank_images(found.rows[:1], 10) == []
