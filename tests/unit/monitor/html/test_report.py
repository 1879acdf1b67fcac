"""The report: one page that stands alone, tells everything, and obeys nothing it shows."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.support.run_files import ID, Tags, Written
from workloads import cli
from workloads import run as runs
from workloads.errors import UserError
from workloads.monitor.html import report
from workloads.monitor.reading.settings import RunFacts, read_facts
from workloads.run import write_manifest
from workloads.run.integrity import seal

pytestmark = pytest.mark.unit
EVIL = "<script>alert(1)</script><svg onload=alert(2)>\"'&"


@pytest.fixture
def written(tmp_path: Path) -> Written:
    found = Written(tmp_path).begun().losses([7.0 - 0.05 * step for step in range(100)])
    for step in (50, 100):
        found.run.eval_metric({"step": step, "eval_loss": 4.0 - step / 100})
    return found


def ended(written: Written) -> Written:
    for when, share in (("before", 0.0), ("after", 0.5)):
        answers = [
            {"index": at, "question": f"How many {EVIL}?", "output": f"{when} {at}", "answer": "42"}
            | {"strict": when == "after" and at == 1}
            for at in range(20)
        ]
        folder = written.run.evaluation / when
        folder.mkdir(parents=True)
        (folder / "gsm8k-1.jsonl").write_text(
            "".join(json.dumps(answer) + "\n" for answer in answers)
        )
        scores = {"task": "gsm8k", "rows": 20, "strict": share, "answers": "gsm8k-1.jsonl"}
        (folder / "gsm8k.json").write_text(json.dumps({**scores, "settings": {"rows": 20}}))
    folder = written.run.checkpoints / "checkpoint-100"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * 4096)
    seal(folder, {"step": 100})
    (written.run.checkpoints / "checkpoint-90").mkdir()
    split = {"rows": 300, "tokens": 30773, "bad_rows": [f"data.jsonl:7: {EVIL}", "data.jsonl:9: x"]}
    write_manifest(written.run, {"data": {"max_length": 320, "train": split, "notes": [EVIL]}})
    written.run.event("finished", code=0, reason=EVIL)
    written.beat(0, phase="done", code=0)
    written.beat(1, phase="failed", code=1, reason=EVIL)
    return written


def page(written: Written) -> str:
    return report.render(read_facts(written.run))


def section(text: str, title: str) -> str:
    found = re.search(f"<section><h2>{title}</h2>(.*?)</section>", text, re.DOTALL)
    return found[1] if found else ""


def words(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_the_page_tells_the_whole_run(written: Written) -> None:
    text = page(ended(written))
    assert f"demo/{ID}" in text and "7 → 2.05" in text and "3.5 → 3" in text
    assert section(text, "Curves").count("<svg") >= 4
    assert "strict 0.0% 50.0% +50.0 points" in words(section(text, "Evaluation"))
    assert "train rows 300 tokens 30,773" in words(section(text, "Data"))
    assert "bad rows (2)" in words(section(text, "Data"))
    assert "checkpoint-90 not whole" in words(section(text, "Checkpoints"))
    assert "100 checkpoint-100 4.0 KiB" in words(section(text, "Checkpoints"))
    assert "started attempt 0" in words(section(text, "Events"))
    assert "pyyaml" in section(text, "Environment").lower() or "torch" in text


def test_settings_come_with_their_sources(written: Written) -> None:
    settings = words(section(page(written), "Settings"))
    assert "optim.learning_rate 3e-05 environment LEARNING_RATE" in settings
    assert re.search(r"train.per_device_batch_size \d+ profiles/demo.yaml:\d+:\d+", settings)
    assert re.search(r"\d+ settings at their defaults", settings)
    assert "optim.epsilon 1e-08 default" in settings


def test_the_page_stands_alone_and_runs_nothing(written: Written) -> None:
    tags = Tags(page(ended(written)))
    assert tags.open == [] and tags.wrong == []
    assert list(tags.dangers()) == [] and "script" not in tags.names
    policy = next(facts for tag, facts in tags.found if facts.get("http-equiv"))
    assert "default-src 'none'" in str(policy["content"])


def test_what_a_prompt_says_is_shown_and_not_obeyed(written: Written) -> None:
    text = page(ended(written))
    assert "<script" not in text and "onload=alert(2)>" not in text
    shown = "&lt;script&gt;alert(1)&lt;/script&gt;"
    for title in ("Evaluation", "Data", "Ranks", "Events"):
        assert shown in section(text, title), title


def test_names_of_files_and_keys_are_escaped_too(written: Written) -> None:
    write_manifest(written.run, {EVIL: {EVIL: EVIL}, "data": {EVIL: {EVIL: 1}}})
    written.run.metric({"step": 1, EVIL: 1.0})
    written.run.metric({"step": 2, EVIL: 2.0})
    folder = written.run.evaluation / "before"
    folder.mkdir()
    (folder / "x<b>.json").write_text(json.dumps({EVIL: 0.5}))
    (written.run.final).mkdir()
    (written.run.final / "<img src=x>").write_text("x")
    text = page(written)
    assert "<script" not in text and "<img" not in text and "<b>.json" not in text
    assert Tags(text).wrong == []


def test_answers_whose_verdict_changed_come_first(written: Written) -> None:
    evaluation = section(page(ended(written)), "Evaluation")
    assert re.findall(r"<h3>question (\d+)</h3>", evaluation)[:3] == ["1", "0", "2"]
    first = words(evaluation).partition("question 1 ")[2].partition("question 0")[0]
    assert "before strict no before 1 after strict yes after 1 expected 42" in first


def test_an_answers_file_is_never_looked_for_elsewhere(written: Written, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"index": 0, "question": "never to be seen", "output": "x"}\n')
    folder = written.run.evaluation / "after"
    folder.mkdir()
    (folder / "t.json").write_text(
        json.dumps({"strict": 1.0, "answers": f"../../../{secret.name}"})
    )
    assert "never to be seen" not in page(written)


def test_a_run_that_has_hardly_begun(tmp_path: Path) -> None:
    text = page(Written(tmp_path))
    assert "still going on" in text and "starting" in text
    assert section(text, "Curves") == "" and section(text, "Settings")
    assert Tags(text).wrong == []


def test_a_run_with_nothing_but_damage(tmp_path: Path) -> None:
    written = Written(tmp_path)
    for name in ("config.json", "manifest.json", "events.jsonl", "metrics.jsonl"):
        (written.run.path / name).write_text('{"format": [1, 2')
    assert Tags(page(written)).open == []


def test_odd_values_in_the_manifest_are_shown_as_they_are(written: Written) -> None:
    write_manifest(written.run, {"data": ["odd"], "versions": "none", "git": [], "x": [{"a": 1}]})
    assert "a 1" in words(section(page(written), "Environment"))


def test_memory_stands_as_planned_beside_as_measured(written: Written) -> None:
    sizes = {"allocated": 9 << 30, "reserved": 10 << 30, "process": 11 << 30}
    planned = {"allocated": 18 << 30, "reserved": None, "process": 11 << 30}
    runs.write_manifest(written.run, {"memory": {"planned": planned, "measured": sizes}})
    text = words(section(page(written), "Memory"))
    assert "allocated" in text and "+100.0%" in text and "reserved" not in text
    runs.write_manifest(written.run, {"memory": {"planned": planned, "measured": None}})
    assert "no GPU" in words(section(page(written), "Memory"))


def test_a_long_run_makes_a_small_page(written: Written) -> None:
    with written.run.metrics.open("w") as file:
        file.writelines(
            f'{{"step": {step}, "loss": {1 + step % 5}, "grad_norm": 1.5}}\n'
            for step in range(1, 50_001)
        )
    text = page(written)
    assert len(text) < 300_000 and "50,000" in text


@pytest.mark.runs("tatara report RUN")
def test_it_is_written_beside_the_run_or_where_it_is_wanted(
    written: Written,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TATARA_OUTPUTS", str(tmp_path))
    assert cli.main(["report", ID]) == 0
    assert capsys.readouterr().out.strip() == str(written.run.path / "report.html")
    out = tmp_path / "new" / "page.html"
    assert cli.main(["report", "latest", "--output", str(out)]) == 0
    assert out.read_text().startswith("<!doctype html>")
    assert cli.main(["report", "nothing"]) == 2


def test_a_place_that_cannot_be_written_is_named(written: Written, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: .*; name another file with --output"):
        report.write([written.run], tmp_path / "file" / "page.html")


def test_sections_are_functions_in_a_list(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rollouts(facts: RunFacts) -> list[str]:
        return [f"<p>{len(facts.snapshot.curves)} curves</p>"]

    monkeypatch.setattr(report, "SECTIONS", (*report.SECTIONS, ("Rollouts", rollouts)))
    assert "curves" in section(page(written), "Rollouts")


def rolled_out(written: Written, steps: int) -> Path:
    folder = written.run.path / "rollouts"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(folder / "images" / "a.png")
    rows = [
        {"step": step, "place": f"train.jsonl:{step}", "prompt": f"How many? {EVIL}"}
        | {"completion": f"<answer> {at} </answer>", "solution": "3", "image": "images/a.png"}
        | {"rewards": {"accuracy": float(at == 3)}, "reward": at / 2, "advantage": -0.25}
        for step in range(1, steps + 1)
        for at in (2, 3)
    ]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rollouts_from_the_first_step_to_the_last(written: Written) -> None:
    rolled_out(written, steps=41)
    text = section(page(written), "Rollouts")
    assert re.findall(r"step (\d+), 2 completions", text) == ["1", "11", "21", "31", "41"]
    assert "train.jsonl:41" in text and "<script" not in text
    assert "&lt;answer&gt; 3 &lt;/answer&gt; 1.5 -0.25 accuracy 1" in words(text)
    assert text.count("data:image/png;base64,") == 5


@pytest.mark.parametrize("image", ["../../config.json", "/etc/hostname", "images/no.png", None, 7])
def test_a_rollout_shows_pictures_of_its_own_folder_only(written: Written, image: object) -> None:
    file = rolled_out(written, steps=1) / "rollouts.jsonl"
    rows = [json.loads(line) | {"image": image} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = section(page(written), "Rollouts")
    assert "<img" not in text and "How many?" in text


def test_pictures_of_evaluations_are_part_of_the_page(written: Written) -> None:
    folder = ended(written).run.evaluation / "after"
    Image.new("RGB", (8, 8), "blue").save(folder / "reach_rollouts.png")
    (folder / "broken.png").write_bytes(b"no picture")
    text = section(page(written), "Evaluation")
    assert text.count("<img") == 1 and "after/reach rollouts" in text
    assert "img-src data:" in page(written)


def test_held_out_questions_stand_with_their_answers_over_the_steps(written: Written) -> None:
    written.run.evaluation.mkdir(exist_ok=True)
    rows = [
        {"step": step, "place": f"eval.jsonl:{at}", "asked": f"{at} + 1? {EVIL}"}
        | {"output": f"at {step}", "answer": str(at + 1)}
        for step in (*range(0, 1000, 10), 990)
        for at in range(3)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "damaged\n"
    (written.run.evaluation / "samples.jsonl").write_text(text)
    shown = section(page(written), "Held-out questions during training")
    assert shown.count("<details>") == 3 and "eval.jsonl:2" in shown
    steps = re.findall("<th>step ([0-9,]+)</th>", shown)
    assert len(steps) == 3 * 6 and (steps[0], steps[5]) == ("0", "990")
    assert "at 990" in shown and EVIL not in shown
    assert section(page(Written(written.run.path.parent.parent, "none")), "Held-out") == ""
