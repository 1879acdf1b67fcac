"""Rows whose prompts were counted, beside what the model's own processor makes of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.tiny_llava import TOKENS, write_llava
from workloads.config.merge import resolve
from workloads.config.sections import Model
from workloads.engine.pretrained.base import find_base
from workloads.errors import UserError
from workloads.grpo import check
from workloads.grpo.check_counts import prove, sample_of
from workloads.grpo.config import GrpoConfig
from workloads.grpo.data.images import ImageFile
from workloads.grpo.data.prepare import count, prepare
from workloads.grpo.data.rows import Example
from workloads.grpo.data.tokens import RowTokens
from workloads.grpo.model import check_options, load_processing
from workloads.grpo.objective import Grpo
from workloads.grpo.prompts import Wording

pytestmark = pytest.mark.unit

SIZES = [(40, 30), (300, 20), (20, 300), (7, 5), (200, 200)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, one of them turned by its EXIF, and questions of many lengths."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for place, size in enumerate(SIZES):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", size, (90, 160, 40)).save(folder / f"{place}.jpg", exif=exif)
        problem = "How many?" + " Really?" * place
        lines.append(f'{{"image": "{place}.jpg", "problem": "{problem}", "solution": "{place}"}}\n')
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder


def config_of(llava: Path, rows: Path, *words: str) -> GrpoConfig:
    settings = [f"data.source={rows}", f"model.name={llava}", "grpo.max_prompt_length=400"]
    config, _ = resolve("profiles/demo-grpo.yaml", {}, [*settings, *words])
    assert isinstance(config, GrpoConfig)
    return config


def test_counted_rows_are_as_long_as_the_processor_makes_them(llava: Path, rows: Path) -> None:
    data = prepare(config_of(llava, rows), llava, rows)
    processing = load_processing(find_base(Model(name=str(llava)), print), Grpo())
    assert prove(data.counted, processing, Wording()) == len(SIZES)


def test_a_prompt_that_was_counted_otherwise_is_named(llava: Path, rows: Path) -> None:
    data = prepare(config_of(llava, rows), llava, rows)
    processing = load_processing(find_base(Model(name=str(llava)), print), Grpo())
    example, counted = data.counted[2]
    wrong = replace(counted, image=TOKENS * 4)
    with pytest.raises(
        UserError, match=r"rows\.jsonl:3: expected a prompt as long as it was count"
    ):
        prove([data.counted[0], (example, wrong)], processing, Wording())


def test_a_deep_check_compares_with_the_processor(
    llava: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = check.deep(config_of(llava, rows), {})
    assert good[-1].level == "ok" and "as the model's own processor counts" in good[-1].found
    # What would end a training is an error here too.
    refused = check.deep(config_of(llava, rows, "grpo.max_pixels=401408"), {})
    assert refused[-1].level == "error" and "leave them out" in refused[-1].found
    # A model whose images cost something else than a fixed grid has.
    processing = load_processing(find_base(Model(name=str(llava)), print), Grpo())
    monkeypatch.setattr(processing, "num_additional_image_tokens", 3)
    monkeypatch.setattr("workloads.grpo.model.load_processing", lambda *_: processing)
    (found,) = [
        finding for finding in check.deep(config_of(llava, rows), {}) if finding.level == "error"
    ]
    assert "are not understood, choose another model" in found.found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("grpo.router_aux_loss_coef=0.1",), "expected a mixture of experts, found llava"),
        (("grpo.cast_lm_head_to_fp32=true",), "TRL takes neither an adapter nor a vision tower"),
    ],
)
def test_options_that_trl_takes_with_other_models(
    llava: Path, rows: Path, words: tuple[str, ...], said: str
) -> None:
    """G-F11: named before the model is loaded."""
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(llava)
    own.tie_word_embeddings = True
    with pytest.raises(UserError, match=said):
        check_options(own, config_of(llava, rows, *words))
    check_options(own, config_of(llava, rows, *words, "stage=sft"))
    own.tie_word_embeddings = own.get_text_config().tie_word_embeddings = False
    check_options(own, config_of(llava, rows, *words[:-1]))


def test_the_sample_has_the_extremes() -> None:
    def row(place: str, text: int, image: int, size: tuple[int, int] | None) -> Any:
        images = (ImageFile(Path(place)),) if size else ()
        sizes = (size,) if size else ()
        return Example(place, "q", "1", images), RowTokens(place, text, image, sizes, sizes)

    rows = [
        row("first", 9, 4, (50, 50)),
        row("longest", 99, 4, (51, 50)),
        row("largest", 9, 64, (900, 900)),
        row("smallest", 9, 4, (2, 2)),
        row("stretched", 9, 16, (800, 9)),
        row("any", 9, 16, (90, 90)),
        row("last", 9, 16, (90, 90)),
    ]
    found = [example.place for example, _ in sample_of(rows)]
    assert found == ["first", "smallest", "last", "longest", "largest", "stretched"]
    assert [example.place for example, _ in sample_of([row("text", 9, 0, None)])] == ["text"]
    assert sample_of([]) == []


def test_answers_that_are_too_long_to_be_taught_are_named_before_training(
    llava: Path, tmp_path: Path
) -> None:
    def lines(solutions: Sequence[str]) -> Path:
        path = tmp_path / "sums.jsonl"
        text = [f'{{"problem": "1 + 1?", "solution": "{solution}"}}\n' for solution in solutions]
        path.write_text("".join(text))
        return path

    words = ("stage=sft", "grpo.max_completion_length=20", "model.name=data/demo/tiny-llama")
    llama = Path("data/demo/tiny-llama")
    config = config_of(llava, lines(["2", "2" * 400, "3"]), *words)
    with pytest.raises(
        UserError, match=r"sums\.jsonl:2: expected an answer of fewer than 20 tokens"
    ):
        prepare(config, llama, tmp_path)
    good = prepare(config_of(llava, lines(["2", "3"]), *words), llama, tmp_path)
    found = count(config, llama, good.examples)
    assert found.fits == [True, True]
    rewarded = config_of(llava, lines(["2", "2" * 400]), *words[1:])
    assert len(prepare(rewarded, llama, tmp_path).examples) == 2


def test_a_supervised_stage_that_teaches_what_earns_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"problem": "1 + 1?", "solution": "2"}\n' * 3)
    words = ("stage=sft", "grpo.max_completion_length=60", "model.name=data/demo/tiny-llama")

    def warnings(answer: str) -> list[str]:
        config = config_of(tmp_path, tmp_path, *words, f"sft.answer={answer}")
        return [finding.found for finding in check.deep(config, {}) if finding.level == "warning"]

    (first, _) = warnings("<think> I add. </think> {solution}")
    assert first.startswith("reward accuracy_extracted gives 0 to '<think> I add. </think> 2'")
    assert warnings("<think> I add. </think> <answer> {solution} </answer>") == []


def test_a_frozen_vision_tower_leaves_projector_and_text_to_learn(llava: Path) -> None:
    """G-F12: model.freeze_vision."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    from workloads.grpo.model import freeze_vision

    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(llava))
    freeze_vision(model, "llava")
    learns = {name.split(".")[1] for name, one in model.named_parameters() if one.requires_grad}
    assert "vision_tower" not in learns and {"multi_modal_projector", "language_model"} <= learns
    text = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("data/demo/tiny-llama"))
    with pytest.raises(UserError, match="expected a vision tower in tiny-llama"):
        freeze_vision(text, "tiny-llama")
