"""Rows from a hub: a real HTTP server on loopback, and the real `datasets` library.

The library reads its address when it is imported, so the cases run in a process of their own:
`python -m tests.unit.llm.data.test_hub_rows FOLDER` prints what each has found.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.fake_hub import OTHER_TOKEN, FakeHub

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[4]
ROWS, GATED = "owner/rows", "owner/gated"
CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""


def main(folder: Path) -> None:
    repository = folder / "repository"
    repository.mkdir()
    (repository / "README.md").write_text(CARD)
    for split, count in (("train", 30), ("test", 5)):
        rows = [{"q": f"{split} {i}", "answer": f"{i}"} for i in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (repository / f"{split}.jsonl").write_text(text)
    found = {}
    with FakeHub({ROWS: repository, GATED: repository}, gated=[GATED]) as hub:
        os.environ |= {"HF_HOME": str(folder / "home"), "HF_ENDPOINT": hub.url}
        from huggingface_hub import close_session

        found["rows"] = case(eval_split="test")
        found["from training rows"] = case(eval_rows=6)
        found["split"] = case(split="trian")
        found["subset"] = case(subset="socratic")
        found["column"] = case(columns={"question": "question"})
        found["missing"] = case(source="owner/nothing")
        found["gated"] = case(source=GATED)
        os.environ["HF_TOKEN"] = OTHER_TOKEN
        found["gated, token"] = case(source=GATED)
        os.environ["HF_TOKEN"] = "hf_stale"
        found["bad token"] = case()
        del os.environ["HF_TOKEN"]
    close_session()  # a connection kept open would still be answered
    started = time.monotonic()
    found["cached"] = case(eval_split="test")
    found["not cached"] = case(source="owner/other")
    print(json.dumps({**found, "seconds without a hub": time.monotonic() - started}))


def case(**settings: object) -> dict:
    from workloads.errors import TataraError
    from workloads.llm.config import LlmData
    from workloads.llm.data.prepare import load_rows
    from workloads.llm.data.rows import Splits

    data = LlmData(**{"source": ROWS, "columns": {"question": "q"}, **settings})
    try:
        train, held = load_rows(data, "train"), load_rows(data, "eval")
        return {
            "train": list(train),
            "eval": list(held),
            "place": held.place(held.numbers[1]),
            "fingerprint": Splits(data).fingerprint(),
        }
    except TataraError as error:
        return {type(error).__name__: str(error)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    secret = ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    env = {name: value for name, value in os.environ.items() if name not in secret}
    command = [sys.executable, "-m", "tests.unit.llm.data.test_hub_rows"]
    folder = str(tmp_path_factory.mktemp("hub"))
    done = subprocess.run(
        [*command, folder], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_rows_of_both_splits_come_under_our_names(found: dict) -> None:
    rows = found["rows"]
    assert rows["train"] == [{"question": f"train {i}", "answer": f"{i}"} for i in range(30)]
    assert rows["eval"] == [{"question": f"test {i}", "answer": f"{i}"} for i in range(5)]
    assert rows["place"] == "owner/rows[test]:1"


def test_rows_are_held_out_of_a_hub_split_too(found: dict) -> None:
    rows = found["from training rows"]
    assert len(rows["eval"]) == 6 and len(rows["train"]) == 24
    everyone = {row["question"] for row in rows["train"] + rows["eval"]}
    assert everyone == {f"train {i}" for i in range(30)}


def test_what_a_data_set_does_not_have_is_named_with_what_it_has(found: dict) -> None:
    assert "'train'" in found["split"]["UserError"] and "trian" in found["split"]["UserError"]
    assert "'main'" in found["subset"]["UserError"]
    column = found["column"]["UserError"]
    assert "missing column 'question'; found 'q', 'answer'" in column and "data.columns" in column


def test_no_data_set_gated_and_bad_token_are_told_apart(found: dict) -> None:
    assert "correct the name" in found["missing"]["UserError"]
    assert "no token is set" in found["gated"]["UserError"]
    assert f"datasets/{GATED}" in found["gated, token"]["UserError"]
    assert "expected a valid token" in found["bad token"]["UserError"]


def test_without_a_hub_the_cache_serves_at_once(found: dict) -> None:
    assert found["cached"] == found["rows"]
    assert "cannot be reached" in found["not cached"]["Retry"]
    assert found["seconds without a hub"] < 10


if __name__ == "__main__":
    main(Path(sys.argv[1]))
