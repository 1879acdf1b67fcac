"""What is held out of training, what training rows show, and what the summary says of it."""

from pathlib import Path

import pytest

from workloads.config.merge import resolve
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.prepare import Prepared, prepare
from workloads.grpo.data.rows import Example, generate_scenes, with_images, write_imagefolder
from workloads.grpo.evaluate.held_out import commonest

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_imagefolder(generate_scenes(20, 0, "A", (1, 2), (36, 24)), folder)
    return folder


def prepared(scenes: Path, *words: str) -> Prepared:
    settings = [f"data.source={scenes}", "model.name=data/demo/tiny-llava", *words]
    config, _ = resolve("profiles/demo-grpo.yaml", {}, settings)
    assert isinstance(config, GrpoConfig)
    return prepare(config, Path(config.model.name), scenes)


@pytest.mark.parametrize(("wanted", "kept"), [(64, 18), (1, 19), (0, 20)])
def test_the_last_rows_are_held_out_but_no_more_than_a_tenth(
    scenes: Path, wanted: int, kept: int
) -> None:
    data = prepared(scenes, f"evaluation.rows={wanted}")
    assert (len(data.examples), len(data.held_out)) == (kept, 20 - kept)
    places = [example.place for example in (*data.examples, *data.held_out)]
    assert places == [example.place for example in prepared(scenes, "evaluation.rows=0").examples]
    assert (data.facts["rows"], data.facts["held_out"]) == (kept, 20 - kept)


def test_training_rows_show_other_pictures_and_held_out_rows_their_own(scenes: Path) -> None:
    own, other, grey = (
        prepared(scenes, f"data.pictures={which}") for which in ("own", "shuffled", "grey")
    )
    seen = [
        [example.open_images()[0].tobytes() for example in data.examples]
        for data in (own, other, grey)
    ]
    assert seen[1] != seen[0] and sorted(seen[1]) == sorted(seen[0])
    assert len(set(seen[2])) == 1 and len(seen[2][0]) == len(seen[0][0])
    for data in (other, grey):
        assert [example.solution for example in data.examples] == [
            example.solution for example in own.examples
        ]
        assert data.held_out == own.held_out


def test_rows_of_text_have_no_picture_to_take_away() -> None:
    rows = [Example("a:1", "1 + 1?", "2"), Example("a:2", "1 + 2?", "3")]
    for which in ("own", "shuffled", "grey"):
        assert with_images(rows, which) == rows


def test_the_commonest_answer_is_of_the_training_rows() -> None:
    def row(number: int) -> Example:
        return Example("a:1", "how many?", f"<answer> {number} </answer>")

    data = Prepared([row(2), row(3), row(3), row(2), row(1)], [], [row(1), row(1), row(1)])
    assert commonest(data) == "<answer> 2 </answer>"
