"""What is said of columns that no format has: the map to write."""

import pytest
import yaml

from workloads.llm.config import LlmData
from workloads.llm.data.columns import Columns

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("found", "example"),
    [
        (["Question", "Answer", "date"], {"question": "Question", "answer": "Answer"}),
        (["question", " answer"], {"question": "question", "answer": " answer"}),
        (["Instruction", "Output", "Input"], {"instruction": "Instruction", "output": "Output"}),
        (["質問", "回答"], {"question": "質問", "answer": "回答"}),
        (["질문, 하나", "답변"], {"question": "질문, 하나", "answer": "답변"}),
        (["id", "title", "body"], {"question": "NAME", "answer": "NAME"}),
    ],
)
def test_a_map_of_the_columns_that_may_be_meant(found: list[str], example: dict[str, str]) -> None:
    told = Columns(LlmData(source="a.csv")).read(dict.fromkeys(found, "x"))
    assert isinstance(told, str) and "expected the columns of one format (" in told
    shown = told.partition("data.columns='")[2].partition("'")[0]
    assert yaml.safe_load(shown) == example
