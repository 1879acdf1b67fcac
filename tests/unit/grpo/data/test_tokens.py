"""Image and text tokens without torch, against transformers' own processor."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.support.tiny_llama import make_tokenizer
from workloads.errors import UserError
from workloads.grpo import prompts
from workloads.grpo.data import tokens
from workloads.grpo.data.images import ImageFile
from workloads.grpo.data.rows import Example

pytestmark = pytest.mark.unit

VISION = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
<|begin|>You help.<|end|>
{% endif %}
{% for message in messages %}
{{ '<|' + message.role + '|>' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>
{%- else %}{{ part.text }}{% endif %}
{%- endfor %}
{%- endif %}<|end|>
{% endfor %}
{%- if add_generation_prompt and tools is none %}<|assistant|>
{% endif %}"""
LIMITED = {"min_pixels": 56 * 56, "max_pixels": 200704}


class PicturesOnly(Qwen2_5_VLProcessor):
    """The whole processor but for videos, whose part needs a library that is not installed."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Processor files as a checkpoint has them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": VISION})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(**LIMITED).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> PicturesOnly:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    images = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    return PicturesOnly(images, tokenizer, None, chat_template=tokenizer.chat_template)


def save_image(folder: Path, size: tuple[int, int]) -> ImageFile:
    path = folder / f"{size[0]}x{size[1]}.png"
    Image.new("RGB", size, (9, 99, 199)).save(path)
    return ImageFile(path)


def example(problem: str, image: ImageFile | None, place: str = "rows.jsonl:1") -> Example:
    return Example(place, problem, "<answer> 4 </answer>", (image,) if image else ())


@pytest.mark.parametrize("pixels", [(56 * 56, 28 * 28 * 1280), (3136, 401408), (784, 200704)])
def test_image_tokens_of_any_size(pixels: tuple[int, int]) -> None:
    random = Random(pixels[1])
    rules = tokens.ImageRules(*pixels)
    reference = Qwen2VLImageProcessorPil(min_pixels=pixels[0], max_pixels=pixels[1])
    sizes = [(random.randint(1, 4000), random.randint(1, 4000)) for _ in range(3000)]
    sizes += [(28 * i + 14, 28 * j + 14) for i in range(12) for j in range(12)]  # halves
    sizes += [(200, 1), (1, 200), (28, 5600), (1, 1), (27, 29)]
    for width, height in sizes:
        if max(width, height) > 200 * min(width, height):
            with pytest.raises(ValueError, match="at most 200 times"):
                rules.tokens(width, height)
            continue
        patches = reference.get_number_of_image_patches(height, width, {})
        assert rules.tokens(width, height) == patches // 4, (width, height)


SIZES = [(480, 320), (640, 480), (31, 700), (1200, 900), (14, 14), (5600, 28), (29, 57), (1, 1)]


def test_whole_prompts_against_the_processor(
    checkpoint: Path, processor: PicturesOnly, tmp_path: Path
) -> None:
    text, rules = tokens.read_prompt_text(checkpoint), tokens.read_image_rules(checkpoint)
    rows = [
        example(f"Wie viele? {'größer ' * i}", save_image(tmp_path, size))
        for i, size in enumerate(SIZES)
    ]
    for row, counted in zip(rows, tokens.count_rows(rows, text, rules), strict=True):
        assert isinstance(counted, tokens.RowTokens)
        turns = prompts.image_turns(row.problem)
        rendered = processor.apply_chat_template(turns, add_generation_prompt=True)
        found = processor(text=[rendered], images=row.open_images())
        ids = list(found["input_ids"][0])
        assert counted.prompt == len(ids)
        assert counted.image == ids.count(processor.image_token_id)
        _, down, across = found["image_grid_thw"][0].tolist()
        assert counted.scaled == ((14 * across, 14 * down),)


def test_text_only_against_the_tokenizer(checkpoint: Path, processor: PicturesOnly) -> None:
    text, rules = tokens.read_prompt_text(checkpoint), tokens.read_image_rules(checkpoint)
    (counted,) = tokens.count_rows([example("1+1?", None)], text, rules)
    turns = prompts.text_turns("1+1?")
    ids = processor.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert isinstance(counted, tokens.RowTokens)
    assert (counted.prompt, counted.image) == (len(ids), 0)


def test_rules_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    assert tokens.read_image_rules(checkpoint) == tokens.ImageRules(3136, 200704)
    assert tokens.read_image_rules(checkpoint, max_pixels=401408).max_pixels == 401408
    own = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "patch_size": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**own, "max_pixels": 9999}))
    assert tokens.read_image_rules(tmp_path) == tokens.ImageRules(3136, 9999, patch=16)
    nested = {"image_processor": {**own, "size": {"shortest_edge": 4096, "longest_edge": 8192}}}
    del nested["image_processor"]["min_pixels"]
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert tokens.read_image_rules(tmp_path) == tokens.ImageRules(4096, 8192, patch=16)


def test_rules_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"preprocessor_config\.json or processor_config\.json"):
        tokens.read_image_rules(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        tokens.read_image_rules(tmp_path)
    file.write_text('{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(UserError, match="found CLIPImageProcessor"):
        tokens.read_image_rules(tmp_path)
    file.write_text('{"image_processor_type": "Qwen2VLImageProcessorFast"}')
    with pytest.raises(UserError, match="784 <= min_pixels <= max_pixels, found 3136 and 1000"):
        tokens.read_image_rules(tmp_path, max_pixels=1000)


def test_where_the_chat_template_comes_from(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="expected a chat template"):
        tokens.read_prompt_text(tmp_path)
    turns = prompts.text_turns("1+1?")
    config = {"chat_template": "a", "bos_token": {"content": "<|begin|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokens.read_prompt_text(tmp_path).count(turns) == (1, 0)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "aa"}))
    assert tokens.read_prompt_text(tmp_path).count(turns) == (2, 0)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}aa")
    assert tokens.read_prompt_text(tmp_path).count(turns) == (3, 0)


def copied(checkpoint: Path, folder: Path) -> Path:
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_truncation_that_a_training_left_behind_hides_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = copied(checkpoint, tmp_path)
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["truncation"] = {
        "direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    settings["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    for question in ("?", "how many? " * 50):
        turns = prompts.text_turns(question)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert tokens.read_prompt_text(folder).count(turns) == (len(ids), 0)


def test_a_text_for_a_model_that_sees_is_put_as_the_trainer_puts_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Templates of processors may know lists of parts alone, as LLaVA's do."""
    from transformers import PreTrainedTokenizerFast
    from trl.data_utils import prepare_multimodal_messages

    from workloads.grpo.model import prompt_texts

    folder = copied(checkpoint, tmp_path)
    template = (
        "{% for message in messages %}<|{{ message.role }}|>"
        "{% for part in message.content %}{{ part.type }} {{ part.text }}{% endfor %}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    processor = PicturesOnly(images, tokenizer, None, chat_template=template)
    turns = prompts.text_turns("1 + 1?")
    given = prepare_multimodal_messages(turns)
    ids = processor.apply_chat_template([given], tokenize=True, return_dict=True)["input_ids"]
    assert tokens.read_prompt_text(folder).count(turns) == (len(ids[0]), 0)
    assert prompt_texts(processor, [turns]) == [processor.apply_chat_template(given)]


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("sees", [True, False])
def test_the_start_token_is_counted_as_the_library_puts_it(
    checkpoint: Path, tmp_path: Path, begins: bool, sees: bool
) -> None:
    """A processor puts it before a template without it, a tokenizer alone does not."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    folder = copied(checkpoint, tmp_path)
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = ("<|begin|>", inner.token_to_id("<|begin|>"))
    inner.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[start])
    inner.save(str(folder / "tokenizer.json"))
    said = "messages[0].content if messages[0].content is string else messages[0].content[0].text"
    template = ("{{ bos_token }}" if begins else "") + "{{ " + said + " }}"
    (folder / "chat_template.jinja").write_text(template)
    turns = [{"role": "user", "content": "1 + 1?"}]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.bos_token == "<|begin|>"
    if sees:
        images = Qwen2VLImageProcessorPil.from_pretrained(folder)
        processor = PicturesOnly(images, tokenizer, None, chat_template=template)
        ids = processor.apply_chat_template([turns], tokenize=True, return_dict=True)
        wanted = len(ids["input_ids"][0])
    else:
        wanted = len(tokenizer.apply_chat_template(turns)["input_ids"])
    assert tokens.read_prompt_text(folder, sees).count(turns) == (wanted, 0)


def test_tokens_that_a_tokenizer_lacks_are_nothing_in_a_template(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = copied(checkpoint, tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("bos_token", "eos_token"):
        config[name] = None
    config["chat_template"] = [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "{{ bos_token }}{{ eos_token }}a"},
    ]
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokens.read_prompt_text(folder).count(prompts.text_turns("?")) == (1, 0)
    # As older checkpoints keep them.
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    assert tokens.read_prompt_text(folder).count(prompts.text_turns("?")) == (2, 0)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}",
        "{{ messages[0].content + 1 }}",
        "{% for message in messages %}",
    ],
)
def test_a_template_that_refuses_is_named(checkpoint: Path, tmp_path: Path, template: str) -> None:
    folder = copied(checkpoint, tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="found one that fails: .*; choose a model with another"):
        tokens.read_prompt_text(folder).count(prompts.text_turns("?"))


def test_a_damaged_tokenizer_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: expected a tokenizer"):
        tokens.read_prompt_text(folder)


def test_rows_that_would_break_a_run_are_named(checkpoint: Path, tmp_path: Path) -> None:
    text, rules = tokens.read_prompt_text(checkpoint), tokens.read_image_rules(checkpoint)
    fits, large = save_image(tmp_path, (56, 56)), save_image(tmp_path, (448, 448))
    rows = [
        example("q", fits, "a:1"),
        example("q", large, "a:2"),
        example("q" * 400, fits, "a:3"),
        example("what is <|image_pad|>?", fits, "a:4"),
        example("q", save_image(tmp_path, (2, 500)), "a:5"),
        example("q", ImageFile(tmp_path / "gone.png"), "a:6"),
        example("q", None, "a:7"),
    ]
    counted = list(tokens.count_rows(rows, text, rules))
    first = counted[0]
    assert isinstance(first, tokens.RowTokens) and first.image == 4
    limits = tokens.PromptLimits(
        completion=100, prompt=first.prompt + 300, context=first.prompt + 450, image=200
    )
    found = tokens.report(counted, limits)
    assert found.rows == 7 and found.largest_image is not None and found.longest is not None
    assert (found.largest_image.place, found.longest.place) == ("a:2", "a:3")
    assert [line[:4] for line in found.broken] == ["a:2:", "a:3:", "a:4:", "a:5:", "a:6:"]
    assert "at most 200 image tokens at once" in found.broken[0]
    assert "448 x 448 seen as 448 x 448" in found.broken[0]
    assert "100 completion tokens" in found.broken[1] and "; expected" not in found.broken[0]
    assert "without the model's own tokens, found <|image_pad|>" in found.broken[2]
    with pytest.raises(UserError, match=r"found 5 of 7 rows(.|\n)*a:6: expected an image at"):
        found.raise_if_broken()
    assert not tokens.report(counted[:1], limits).broken
    tokens.report(counted[:1], limits).raise_if_broken()


def test_counting_needs_no_torch() -> None:
    code = "import sys, workloads.grpo.data.tokens, tokenizers, jinja2; "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
