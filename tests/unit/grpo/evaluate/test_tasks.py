"""The two evaluations: questions, results in the published layout, and going on after a stop."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from workloads.errors import TataraError, UserError
from workloads.grpo.evaluate.tasks import (
    TASKS,
    Prompt,
    Question,
    evaluate,
    read_questions,
    score_superclevr,
    table,
)

pytestmark = pytest.mark.unit

SUPERCLEVR, GEOQA = TASKS["superclevr"], TASKS["geoqa"]
ASK = "How many different items are there in the image?"


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A prompt file, and an image for each row whose width is the row's number plus one."""
    for index, row in enumerate(rows):
        path = folder / str(row["image_path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (index + 1, 5)).save(path)
    file = folder / "prompts.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def counting(tmp_path: Path) -> list[Question]:
    rows = [
        {"image_path": f"./images/{i}.png", "question": ASK, "ground_truth": 3 + i}
        for i in range(5)
    ]
    return read_questions(SUPERCLEVR, write(tmp_path, rows), tmp_path)


def by_width(batch: Sequence[Prompt]) -> list[str]:
    """Right for the first three images of `counting`, by their width alone."""
    return [
        f"<think>é</think><answer>{2 + prompt.image.width}</answer>"
        if prompt.image.width <= 3
        else "no tags: 6"
        for prompt in batch
    ]


def test_superclevr_in_the_published_layout(counting: list[Question], tmp_path: Path) -> None:
    output = tmp_path / "out" / "result.json"
    seen: list[Prompt] = []
    steps: list[tuple[int, int]] = []

    def generate(batch: Sequence[Prompt]) -> list[str]:
        seen.extend(batch)
        return by_width(batch)

    result = evaluate(
        SUPERCLEVR, counting, generate, output, "m", 2, lambda *step: steps.append(step)
    )
    assert result.accuracy == 60.0
    entries = [
        {
            "question": {"image_path": f"./images/{i}.png", "question": ASK, "ground_truth": 3 + i},
            "ground_truth": 3 + i,
            "model_output": f"<think>é</think><answer>{3 + i}</answer>" if i < 3 else "no tags: 6",
            "extracted_answer": 3 + i if i < 3 else None,
        }
        for i in range(5)
    ]
    # json.dump with an indent of 2, as the published script writes it.
    assert output.read_text() == json.dumps({"accuracy": 60.0, "results": entries}, indent=2)
    assert steps == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert {prompt.max_new_tokens for prompt in seen} == {256}
    text = seen[0].turns[0]["content"][1]["text"]
    assert text.startswith(ASK + " First output the thinking process in <think>")
    assert [path.name for path in output.parent.iterdir()] == ["result.json"]


def test_geoqa_in_the_published_layout(tmp_path: Path) -> None:
    rows = [
        {"image_path": f"./Geo/images/test/{i}.png", "question": "∠A?", "ground_truth": truth}
        for i, truth in enumerate(["140°", "70°", "5°"])
    ]
    file = write(tmp_path, rows)
    answers = ["so <answer> 140° </answer>", "<answer> 71° </answer>", "I do not know \ud83d"]
    questions = read_questions(GEOQA, file, tmp_path / "Geo")  # without the leading folder
    output = tmp_path / "result.json"
    result = evaluate(GEOQA, questions, lambda batch: answers, output, "m", batch_size=3)
    written = output.read_text(encoding="utf-8")
    assert "140°" in written and "∠A?" in written
    found = json.loads(written)
    assert found["accuracy"] == result.accuracy == pytest.approx(100 / 3)
    assert [entry["extracted_answer"] for entry in found["results"]] == ["140", "71", None]
    assert [entry["is_correct"] for entry in found["results"]] == [True, False, False]
    assert list(found["results"][0]) == [
        "question",
        "ground_truth",
        "model_output",
        "extracted_answer",
        "is_correct",
    ]


def test_going_on_after_a_stop(counting: list[Question], tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    asked: list[int] = []

    def stops(batch: Sequence[Prompt]) -> list[str]:
        if len(asked) == 4:
            raise TataraError("the engine is gone")
        asked.extend(prompt.image.width for prompt in batch)
        return by_width(batch)

    with pytest.raises(TataraError, match="engine"):
        evaluate(SUPERCLEVR, counting, stops, output, "m", batch_size=2)
    assert not output.exists()
    kept = tmp_path / "result.json.answers.jsonl"
    kept.write_bytes(kept.read_bytes() + b'"broken by the sto')
    with pytest.raises(UserError, match="found others"):
        evaluate(SUPERCLEVR, counting, by_width, output, "another model")
    asked.clear()

    def goes_on(batch: Sequence[Prompt]) -> list[str]:
        asked.extend(prompt.image.width for prompt in batch)
        return by_width(batch)

    resumed = evaluate(SUPERCLEVR, counting, goes_on, output, "m", batch_size=3)
    assert asked == [5]
    assert resumed == evaluate(SUPERCLEVR, counting, by_width, tmp_path / "whole.json", "m")
    assert not kept.exists()


@pytest.mark.parametrize("damage", [b"\0\0\0\0\n", b'{"a": 1}\n', b"\xff\n"])
def test_answers_that_were_damaged_are_named(
    counting: list[Question], tmp_path: Path, damage: bytes
) -> None:
    def stops(batch: Sequence[Prompt]) -> list[str]:
        raise TataraError("the engine is gone")

    output = tmp_path / "result.json"
    with pytest.raises(TataraError, match="engine"):
        evaluate(SUPERCLEVR, counting, stops, output, "m")
    kept = tmp_path / "result.json.answers.jsonl"
    header = kept.read_bytes()
    kept.write_bytes(header + damage)
    with pytest.raises(UserError, match=r"an answer in every line of .*remove the file"):
        evaluate(SUPERCLEVR, counting, by_width, output, "m")
    kept.write_bytes(header + b'"7"\n' * 6)
    with pytest.raises(UserError, match="at most 5 answers"):
        evaluate(SUPERCLEVR, counting, by_width, output, "m")


def test_two_evaluations_do_not_write_into_one_file(
    counting: list[Question], tmp_path: Path
) -> None:
    output = tmp_path / "result.json"

    def meanwhile(batch: Sequence[Prompt]) -> list[str]:
        with pytest.raises(UserError, match="found another evaluation at it"):
            evaluate(SUPERCLEVR, counting, by_width, output, "m")
        return by_width(batch)

    result = evaluate(SUPERCLEVR, counting, meanwhile, output, "m", batch_size=3)
    assert result.accuracy == 60.0
    assert evaluate(SUPERCLEVR, counting, by_width, output, "m") == result


def test_engines_that_lose_answers(counting: list[Question], tmp_path: Path) -> None:
    with pytest.raises(TataraError, match="expected 2 answers of a batch, found 1"):
        evaluate(SUPERCLEVR, counting, lambda batch: ["7"], tmp_path / "r.json", "m", 2)


def test_missing_images_and_bad_rows_are_named(tmp_path: Path) -> None:
    row = {"image_path": "images/0.png", "question": ASK, "ground_truth": 3}
    file = write(tmp_path, [row])
    rows = [row, {**row, "image_path": "images/gone.png"}, {**row, "ground_truth": "three"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as refused:
        read_questions(SUPERCLEVR, file, tmp_path)
    lines = str(refused.value).splitlines()
    assert "found 2 bad; fix the rows, or unpack the images into" in lines[0]
    assert "prompts.jsonl:2: expected an image at" in lines[1] and "gone.png" in lines[1]
    assert "prompts.jsonl:3: column 'ground_truth': expected int, found 'three'" in lines[2]


def test_a_damaged_image_is_named(counting: list[Question], tmp_path: Path) -> None:
    counting[1].image.path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png: expected an image"):
        evaluate(SUPERCLEVR, counting, by_width, tmp_path / "r.json", "m")


def test_no_questions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected questions for geoqa"):
        evaluate(GEOQA, [], lambda batch: [], tmp_path / "r.json", "m")


def test_a_table_beside_the_published_scores(counting: list[Question], tmp_path: Path) -> None:
    result = evaluate(SUPERCLEVR, counting, by_width, tmp_path / "r.json", "m")
    lines = table(SUPERCLEVR, result, "my model").splitlines()
    assert lines[0].split() == [
        "my",
        "model",
        "60.00",
        "%",
        "(23.1",
        "to",
        "88.2,",
        "5",
        "questions)",
    ]
    assert [line.split()[-2] for line in lines[1:]] == ["48.00", "82.50", "55.00", "89.50"]
    assert len({line.index("%") for line in lines}) == 1


def test_counts_that_no_number_can_hold() -> None:
    assert not score_superclevr("<answer>" + "7" * 5000 + "</answer>", 7)
