"""`tatara eval superclevr` and `geoqa`: what is asked, refused, unpacked and kept."""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_llava import write_llava
from workloads.commands.evaluate import TASKS
from workloads.errors import UserError
from workloads.grpo.data.rows import generate_scenes
from workloads.grpo.evaluate import command as ask
from workloads.grpo.evaluate.tasks import Prompt
from workloads.grpo.prompts import SUPERCLEVR, image_turns

pytestmark = pytest.mark.unit


def arguments(task: str, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"tatara eval {task}")
    parser.set_defaults(task=task)
    ask.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prompt file and a zip with its images, in a folder inside."""
    folder = tmp_path_factory.mktemp("questions")
    lines = []
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for place, row in enumerate(generate_scenes(3, 1, "B", (1, 3), (60, 40))):
            row["image"].save(folder / "one.png")
            archive.write(folder / "one.png", f"images/{place}.png")
            ask_it = {"image_path": f"./images/{place}.png", "question": "How many?" + "!" * place}
            lines.append({**ask_it, "ground_truth": place + 1})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "prompts.jsonl", folder / "images.zip"


def test_both_tasks_are_known_to_the_command() -> None:
    places = {TASKS[name][0] for name in ("superclevr", "geoqa")}
    assert places == {"workloads.grpo.evaluate.command"}


def test_a_model_is_asked_by_batches_and_the_result_kept(
    tmp_path: Path, llava: Path, questions: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", str(llava), "--precision", "fp32", "--batch-size", "2", "--rows", "2")
    files = ("--prompts", str(questions[0]), "--images", str(questions[1]))
    asked = arguments("superclevr", *words, *files)
    assert ask.main(asked, {"TATARA_OUTPUTS": str(tmp_path)}) == 0
    (path,) = tmp_path.glob("eval/*/superclevr.json")
    result = json.loads(path.read_text())
    assert [row["ground_truth"] for row in result["results"]] == [1, 2]
    said = capsys.readouterr()
    assert f"{result['accuracy']:6.2f} %" in said.out and "2 of 2 questions" in said.err
    assert (questions[1].with_name("images") / "images" / "0.png").is_file()


def test_an_answer_does_not_depend_on_what_is_in_the_batch(llava: Path) -> None:
    rows = generate_scenes(3, 5, "A", (1, 3), (60, 40))
    prompts = [
        Prompt(image_turns("Count" + " all" * (3 * place) + ".", SUPERCLEVR), row["image"], 12)
        for place, row in enumerate(rows)
    ]
    generate = ask._transformers(str(llava), "fp32", None)
    together = generate(prompts)
    alone = [text for prompt in prompts for text in generate([prompt])]
    assert together == alone and any(together)


def test_a_model_without_eyes_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, questions: tuple[Path, Path]
) -> None:
    from tests.support.tiny_llama import write_tiny

    blind = write_tiny(tmp_path / "blind")
    with pytest.raises(UserError, match="takes no images"):
        ask._transformers(str(blind), "fp32", None)


def test_an_adapter_is_not_given_to_vllm(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"found an adapter in .*tatara export RUN --merge"):
        ask._vllm(str(tmp_path), "bf16", None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 0}, "--batch-size: expected at least 1"),
        ({"rows": 0}, "--rows: expected at least 1"),
        ({"images": Path("nowhere")}, "found none at nowhere"),
    ],
)
def test_mistakes_are_named(
    change: dict[str, Any], said: str, tmp_path: Path, questions: tuple[Path, Path]
) -> None:
    files = ("--prompts", str(questions[0]), "--images", str(questions[1]))
    asked = arguments("superclevr", "--model", "x/y", *files)
    vars(asked).update(change)
    with pytest.raises(UserError, match=said):
        ask.main(asked, {"TATARA_OUTPUTS": str(tmp_path)})


def test_vllm_that_is_not_installed_is_named(
    tmp_path: Path, questions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workloads.engine.generate.vllm.find_spec", lambda name: None)
    files = ("--prompts", str(questions[0]), "--images", str(questions[1]))
    asked = arguments("superclevr", "--model", "x/y", "--engine", "vllm", *files)
    with pytest.raises(UserError, match="expected the package vllm"):
        ask.main(asked, {"TATARA_OUTPUTS": str(tmp_path)})


def result_of(folder: Path, outputs: list[str], truths: list[Any]) -> Path:
    """A finished result in the published layout, whose accuracy is not right."""
    entries = [
        {"question": {"question": "?"}, "ground_truth": truth, "model_output": said}
        for said, truth in zip(outputs, truths, strict=True)
    ]
    path = folder / "result.json"
    path.write_text(json.dumps({"accuracy": 1.0, "results": entries}))
    return path


def test_a_finished_result_is_scored_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = result_of(tmp_path, ["<answer> 3 </answer>", "<answer> 4 </answer>"], [3, 5])
    new = tmp_path / "folder" / "new.json"
    words = ("--rescore", str(path), "--output", str(new))
    assert ask.main(arguments("superclevr", *words), {}) == 0
    assert "before: 1.00 %" in capsys.readouterr().out
    found = json.loads(new.read_text())
    assert found["accuracy"] == 50.0
    assert [entry["extracted_answer"] for entry in found["results"]] == [3, 4]
    with pytest.raises(UserError, match="expected answers to questions of geoqa, found others"):
        ask.main(arguments("geoqa", "--rescore", str(path)), {})
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="expected a result of tatara eval superclevr"):
        ask.main(arguments("superclevr", "--rescore", str(tmp_path / "other.json")), {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rows", "1"), "--rows: --rescore asks no questions"),
        (("--max-pixels", "9"), "--max-pixels: --rescore asks no questions"),
        (("--prompts", "a.jsonl", "--images", "a"), "--prompts: --rescore asks no questions"),
        (("--precision", "fp32"), "--precision: --rescore asks no questions"),
        (("--output", "{path}"), "expected another file than the result"),
    ],
)
def test_what_rescoring_cannot_follow_is_refused(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    """G-F15: nothing is ignored, and the result that is scored stays."""
    path = result_of(tmp_path, ["<answer> 3 </answer>"], [3])
    before = path.read_text()
    given = [word.format(path=path) for word in words]
    with pytest.raises(UserError, match=said):
        ask.main(arguments("superclevr", "--rescore", str(path), *given), {})
    assert path.read_text() == before


def test_an_evaluation_with_other_settings_is_another_one() -> None:
    """G-F15: precision, engine and pixels are part of what answers belong to."""
    from workloads.engine.evaluate_command import Target

    def identity(precision: str, *words: str) -> str:
        asked = arguments("superclevr", "--model", "m", *words)
        return ask._identity(Target("m", None, precision, Path(), None), asked)

    found = [
        identity("bf16"),
        identity("fp32"),
        identity("bf16", "--engine", "vllm"),
        identity("bf16", "--max-pixels", "100"),
    ]
    assert len(set(found)) == 4


def test_training_rows_can_be_evaluated(tmp_path: Path) -> None:
    """G-F15: training columns, a count as text, a text as a number."""
    from PIL import Image

    from workloads.grpo.evaluate.tasks import TASKS as KINDS
    from workloads.grpo.evaluate.tasks import read_questions

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "problem": "?", "solution": "<answer> 4 </answer>"},
        {"image_path": "a.png", "question": "?", "ground_truth": "4"},
        {"image_path": "a.png", "question": "?", "ground_truth": 4},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task, truth in (("superclevr", 4), ("geoqa", "4")):
        found = read_questions(KINDS[task], file, tmp_path)
        assert [item.row["ground_truth"] for item in found] == [truth] * 3
