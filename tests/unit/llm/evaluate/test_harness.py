"""lm-evaluation-harness on a model of ours: scores equal to what the model's own logits say."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from workloads.cli import main

pytestmark = [
    pytest.mark.unit,
    pytest.mark.optional,
    pytest.mark.skipif(
        find_spec("lm_eval") is None,
        reason="NOT RUN: needs lm_eval; `make test-full` installs it and runs this",
    ),
]
ROOT = Path(__file__).resolve().parents[4]
QUESTION = "青森県の県庁所在地はどこですか。"
CHOICES = ["青森市です。", "那覇市です。", "大津市です。"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = ROOT / "data/demo/tiny-japanese", tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def ids_of(folder: Path, text: str) -> list[int]:
    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]


def prompt(folder: Path) -> list[int]:
    return ids_of(folder, f"<|begin|><|user|>{QUESTION}<|end|><|assistant|>")


def likelihood(folder: Path, text: str) -> float:
    asked, answer = prompt(folder), ids_of(folder, text)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = loaded(torch.tensor([asked + answer])).logits[0].log_softmax(-1)
    places = range(len(asked) - 1, len(asked) + len(answer) - 1)
    return float(sum(logits[place, token] for place, token in zip(places, answer, strict=True)))


def scores(folder: Path, out: Path, *words: str) -> dict[str, dict[str, object]]:
    assert (
        main(["eval", "tasks", str(folder), "--precision", "fp32", "--output", str(out), *words])
        == 0
    )
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def test_own_tasks_are_scored_by_the_models_own_logits(model: Path, tmp_path: Path) -> None:
    expected = [likelihood(model, choice) for choice in CHOICES]
    best = expected.index(max(expected))
    choices, free = tmp_path / "choices.jsonl", tmp_path / "free.jsonl"
    rows = [{"question": QUESTION, "choices": CHOICES, "answer": n} for n in (best, (best + 1) % 3)]
    choices.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    asked = torch.tensor([prompt(model)])
    said = loaded.generate(
        asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=6
    )[0, asked.shape[1] :]
    text = AutoTokenizer.from_pretrained(model).decode(said, skip_special_tokens=True).strip()
    answers = [{"question": QUESTION, "answer": answer} for answer in (text, "違います")]
    free.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers))
    out = tmp_path / "out"
    found = scores(model, out, "--tasks", f"{choices},{free}", "--max-new-tokens", "6")
    assert found["choices"]["acc"] == 0.5 and found["choices"]["rows"] == 2
    assert found["free"]["exact_match"] == 0.5
    first = json.loads((out / "choices-answers.jsonl").read_text().splitlines()[0])
    assert first["log_likelihoods"] == pytest.approx(expected, abs=1e-3)
    assert (first["output"], first["answer"], first["acc"]) == (CHOICES[best], CHOICES[best], True)
    one = json.loads((out / "free-answers.jsonl").read_text().splitlines()[0])
    assert one["output"] == text and one["exact_match"] is True


def test_a_task_of_the_harness_own_form(model: Path, tmp_path: Path) -> None:
    rows, file = tmp_path / "rows.jsonl", tmp_path / "mine.yaml"
    row = {"q": QUESTION, "options": CHOICES, "right": 0}
    rows.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    file.write_text(
        "task: mine\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        "doc_to_text: '{{q}}'\ndoc_to_choice: options\ndoc_to_target: right\n"
        "metric_list: [{metric: acc}]\n"
    )
    found = scores(model, tmp_path / "out", "--tasks", str(file))
    assert found["mine"]["rows"] == 1 and found["mine"]["acc"] in (0.0, 1.0)


def test_groups_by_name_lead_to_their_files_without_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dataset is asked for: only names and files."""

    def refuse(*_: object) -> None:
        raise AssertionError("nothing may be asked of a network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert main(["eval", "tasks", "--list", "--tasks", "japanese_leaderboard,ai2_arc"]) == 0
    said = capsys.readouterr().out
    assert "japanese_leaderboard: group of 8, lm_eval/tasks/japanese_leaderboard/" in said
    assert "  ja_leaderboard_jcommonsenseqa: dataset Rakuten/JGLUE JCommonsenseQA" in said
    assert "ai2_arc: group of 2" in said
    assert main(["eval", "tasks", "--list", "--tasks", "japanese_leaderbord"]) == 2
    assert "did you mean 'japanese_leaderboard'?" in capsys.readouterr().err


def test_a_data_set_that_cannot_be_had_is_named_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    assert main(["eval", "tasks", "no/model", "--tasks", "ja_leaderboard_jcommonsenseqa"]) != 0
    said = capsys.readouterr().err
    assert "task ja_leaderboard_jcommonsenseqa: its dataset cannot be loaded" in said
