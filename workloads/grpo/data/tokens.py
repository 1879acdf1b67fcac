"""Number of tokens of each row's prompt, before any GPU is used and without torch.

An image's tokens follow from its width and height in the file's header by the rules of Qwen2-VL
and Qwen2.5-VL; a text's from the model's own chat template and tokenizer. Rows that would fail with
"Image features and image tokens do not match", or that an engine would cut or refuse, are found
here.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from workloads.config.sections import Model
from workloads.data.rows import by_reason, indented
from workloads.engine.pretrained.chat import FIXED, chosen_template
from workloads.errors import UserError
from workloads.grpo.data.rows import Example
from workloads.grpo.prompts import IMAGE_MARK, Question, Turns, Wording, in_parts
from workloads.json_files import read_json

IMAGE_TOKEN = "<|image_pad|>"
_QWEN = ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")
_MOST_STRETCHED = 200  # longer side to shorter side


@dataclass(frozen=True)
class ImageRules:
    """How Qwen2-VL and Qwen2.5-VL scale an image and cut it into tokens.

    A token stands for `merge` x `merge` patches of `patch` x `patch` pixels.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    patch: int = 14
    merge: int = 2

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """The size the model sees; ValueError for an image longer than 200 times its breadth.

        Both sides become multiples of a token's side, rounded half to even, and are then shrunk
        or grown together until the pixels are within bounds.
        """
        if max(width, height) > _MOST_STRETCHED * min(width, height):
            raise ValueError(
                f"expected an image at most {_MOST_STRETCHED} times as long as broad, "
                f"found {width} x {height}"
            )
        side = self.patch * self.merge
        # Python's round, floor and ceil, exactly as the processor's smart_resize computes them: one
        # token more or less, and features would not match the prompt.
        across, down = round(width / side) * side, round(height / side) * side
        if across * down > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            across = max(side, math.floor(width / shrink / side) * side)
            down = max(side, math.floor(height / shrink / side) * side)
        elif across * down < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            across = math.ceil(width * grow / side) * side
            down = math.ceil(height * grow / side) * side
        return across, down

    def tokens(self, width: int, height: int) -> int:
        """The number of image tokens in the prompt."""
        across, down = self.scaled(width, height)
        return (across // (self.patch * self.merge)) * (down // (self.patch * self.merge))


def read_image_rules(
    folder: Path, min_pixels: int | None = None, max_pixels: int | None = None
) -> ImageRules:
    """The rules in a checkpoint's processor_config.json or preprocessor_config.json.

    `min_pixels` and `max_pixels` replace the checkpoint's own, as in a profile. Raises UserError
    for another kind of image processor, and for limits that no image can keep.
    """
    config, file = _image_processor(folder)
    kind = str(config.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    if kind not in _QWEN:
        raise UserError(
            f"{file}: expected an image processor among {', '.join(_QWEN)}, found {kind or 'none'};"
            " the image tokens of other models are counted by their own processor"
        )
    size = config.get("size") or {}
    usual = ImageRules()
    rules = ImageRules(
        min_pixels=config.get("min_pixels") or size.get("shortest_edge", usual.min_pixels),
        max_pixels=config.get("max_pixels") or size.get("longest_edge", usual.max_pixels),
        patch=config.get("patch_size", usual.patch),
        merge=config.get("merge_size", usual.merge),
    )
    given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    rules = replace(rules, **{name: value for name, value in given.items() if value is not None})
    least = (rules.patch * rules.merge) ** 2
    if not least <= rules.min_pixels <= rules.max_pixels:
        raise UserError(
            f"expected {least} <= min_pixels <= max_pixels, found {rules.min_pixels} and "
            f"{rules.max_pixels}; raise max_pixels or lower min_pixels"
        )
    return rules


def _image_processor(folder: Path) -> tuple[dict[str, Any], Path]:
    """The image processor's settings: nested where newer libraries put them, else on their own."""
    nested, own = folder / "processor_config.json", folder / "preprocessor_config.json"
    if nested.is_file() and "image_processor" in (config := read_json(nested)):
        return config["image_processor"], nested
    if own.is_file():
        return read_json(own), own
    raise UserError(
        f"expected {own.name} or {nested.name} in {folder}, found neither; "
        "copy the model's processor files there"
    )


class PromptText:
    """A checkpoint's chat template and tokenizer, to render and count prompts.

    `encode` gives the token ids of a text, with what stands before a whole prompt or without;
    `render` turns a conversation into that text.
    """

    def __init__(
        self,
        encode: Callable[[str, bool], Sequence[int]],
        render: Callable[[Turns], str],
        image_token_id: int | None,
        special: Collection[str] = (),
    ) -> None:
        self._special = sorted(special, key=len, reverse=True)
        self._encode = encode
        self._render = render
        self._image_token_id = image_token_id

    def count(self, turns: Turns) -> tuple[int, int]:
        """Number of tokens of the prompt without images, and number of image placeholders."""
        ids = self._encode(self._render(turns), True)
        places = sum(token == self._image_token_id for token in ids)
        return len(ids) - places, places

    def special_in(self, question: Question) -> list[str]:
        """Special tokens in a question's text, which would be encoded as such."""
        before = (text for _, text in question.before)
        said = " ".join([question.text.replace(IMAGE_MARK, " "), *before])
        return [token for token in self._special if token in said]

    def answer(self, text: str) -> int:
        """Tokens of an answer that follows a prompt, its end not counted."""
        return len(self._encode(text, False))


def read_prompt_text(
    folder: Path,
    sees_images: bool = True,
    tools: Sequence[dict[str, Any]] = (),
    model: Model | None = None,
) -> PromptText:
    """The prompt text of the checkpoint in `folder`: tokenizer.json and its chat template.

    A model that sees images has a processor, which puts the start token before a template's text
    that lacks it; a tokenizer alone takes that text as it is. tools: schemas shown in every prompt.
    model: the profile's settings of the template.
    """
    tokenizer, special = _tokenizer(folder), _special_tokens(folder)
    begin = _token(special, "bos_token")

    def encode(text: str, whole: bool) -> Sequence[int]:
        # A template that writes the first token itself must not get it twice.
        add = whole and sees_images and not (begin and text.startswith(begin))
        return tokenizer.encode(text, add_special_tokens=add).ids

    processor = read_json(path) if (path := folder / "processor_config.json").is_file() else {}
    image_token = _token(special, "image_token") or _token(processor, "image_token") or IMAGE_TOKEN
    chosen = chosen_template(model or Model(name=str(folder)), _own_template(folder, special))
    template = _renderer(_one_template(folder, chosen), _constants(special), tools)

    def render(turns: Turns) -> str:
        return template(in_parts(turns) if sees_images else turns)

    added = tokenizer.get_added_tokens_decoder().values()
    own = [token.content for token in added if token.special and token.content.strip()]
    return PromptText(encode, render, tokenizer.token_to_id(image_token), own)


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"expected {file.name} in {folder}, found none; save the tokenizer there")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more special
        raise UserError(
            f"{file}: expected a tokenizer that this version can read, found: {error}; "
            "save it again"
        ) from error
    # Settings that a training left in the file; transformers sets them in every call.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(folder: Path) -> dict[str, Any]:
    """The tokenizer's settings; older checkpoints keep special tokens in a file of their own."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            found |= {key: value for key, value in read_json(path).items() if value is not None}
    return found


def _constants(special: dict[str, Any]) -> dict[str, str]:
    """The special tokens that a template may name; missing ones stay undefined."""
    found = {name: _token(special, name) for name in special if name.endswith("_token")}
    return {name: token for name, token in found.items() if isinstance(token, str)}


def _token(tokenizer_config: dict[str, Any], name: str) -> str | None:
    """A special token's text, which older files wrap in an object."""
    token = tokenizer_config.get(name)
    return token.get("content") if isinstance(token, dict) else token


def _own_template(folder: Path, tokenizer_config: dict[str, Any]) -> Any:
    """The processor's template before the tokenizer's, as the libraries choose; several by name."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if (file := folder / "chat_template.json").is_file():
        template = read_json(file).get("chat_template", template)
    if isinstance(template, list):  # several, each with a name
        return {item.get("name"): item.get("template") for item in template}
    return template


def _one_template(folder: Path, template: Any) -> str:
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise UserError(
            f"expected a chat template in {folder} (chat_template.jinja, chat_template.json or "
            "tokenizer_config.json), found none; use an instruction-tuned model"
        )
    return template


def _renderer(
    template: str, constants: dict[str, str], tools: Sequence[dict[str, Any]]
) -> Callable[[Turns], str]:
    """The template in the environment that templates are written for."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks the model's turns for training; it does not change the text."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = refuse
    given: dict[str, Any] = {"tools": list(tools) or None, "documents": None}
    given |= {"add_generation_prompt": True, **FIXED, **constants}

    @contextmanager
    def named(turns: Turns) -> Iterator[None]:
        try:
            yield
        except (jinja2.TemplateError, TypeError) as error:
            roles = ", ".join(str(turn["role"]) for turn in turns) or "any role"
            raise UserError(
                f"expected a chat template that takes turns of {roles}, found one that fails: "
                f"{error}; choose a model with another one"
            ) from error

    with named([]):
        compiled = environment.from_string(template)

    def render(turns: Turns) -> str:
        with named(turns):
            return compiled.render(messages=turns, **given)

    return render


@dataclass(frozen=True)
class RowTokens:
    """The prompt of one row in tokens; `sizes` and `scaled` are (width, height) of its images."""

    place: str
    text: int
    image: int
    sizes: tuple[tuple[int, int], ...] = ()
    scaled: tuple[tuple[int, int], ...] = ()

    @property
    def prompt(self) -> int:
        """Text and images together."""
        return self.text + self.image

    def __str__(self) -> str:
        if not self.sizes:
            return f"{self.prompt} prompt tokens"
        seen = ", ".join(
            f"{own[0]} x {own[1]} seen as {shown[0]} x {shown[1]}"
            for own, shown in zip(self.sizes, self.scaled, strict=True)
        )
        return f"{self.prompt} prompt tokens ({self.text} text, {self.image} image: {seen})"


def count_rows(
    examples: Iterable[Example],
    text: PromptText,
    rules: ImageRules,
    turns_of: Callable[[Question], Turns] = Wording(),  # noqa: B008 (it is frozen)
) -> Iterator[RowTokens | str]:
    """The tokens of each row's prompt in order, or `place: what is wrong` with the row."""

    @lru_cache(maxsize=4096)  # many images share few questions
    def text_tokens(question: Question) -> tuple[int, int]:
        if own := text.special_in(question):
            raise ValueError(
                f"expected a question without the model's own tokens, found {', '.join(own)}; "
                "take them out"
            )
        return text.count(turns_of(question))

    for example in examples:
        try:
            sizes = example.sizes
            words, places = text_tokens(example.question)
            if places != len(sizes):
                images = "1 image" if len(sizes) == 1 else f"{len(sizes)} images"
                raise ValueError(
                    f"expected a prompt with room for {images}, found {places}; "
                    "image tokens and image features would not match"
                )
            scaled = tuple(rules.scaled(*size) for size in sizes)
            image = sum(rules.tokens(*size) for size in sizes)
            yield RowTokens(example.place, words, image, sizes, scaled)
        except ValueError as error:
            yield f"{example.place}: {error}"


@dataclass(frozen=True)
class PromptLimits:
    """Limits of a prompt in tokens; None where there is no such limit.

    `prompt`: the longest prompt trained on. `context`: the engine's longest sequence (its
    max_model_len or the model's positions), which has to hold `completion` as well. `image`: the
    most image tokens that the engine takes at once (vLLM's max_num_batched_tokens).
    """

    completion: int
    prompt: int | None = None
    context: int | None = None
    image: int | None = None


@dataclass(frozen=True)
class TokenReport:
    """The tokens of a dataset: its extremes, and the rows that would break a run."""

    rows: int
    longest: RowTokens | None
    largest_image: RowTokens | None
    broken: list[str]

    def raise_if_broken(self) -> None:
        """Raise UserError that names the first rows that do not fit and counts the rest."""
        if not self.broken:
            return
        raise UserError(
            f"expected every prompt to fit, found {len(self.broken)} of {self.rows} rows that do "
            f"not; lower max_pixels, raise the limit or remove the rows:"
            f"{indented(by_reason(self.broken))}"
        )


def report(counted: Iterable[RowTokens | str], limits: PromptLimits) -> TokenReport:
    """Compare the result of `count_rows` with `limits`."""
    rows, broken = 0, []
    longest: RowTokens | None = None
    largest: RowTokens | None = None
    for row in counted:
        rows += 1
        if isinstance(row, str):
            broken.append(row)
            continue
        longest = max(longest or row, row, key=lambda item: item.prompt)
        largest = max(largest or row, row, key=lambda item: item.image)
        if breaches := list(_breaches(row, limits)):
            broken.append(f"{row.place}: {'; '.join(breaches)}")
    return TokenReport(rows, longest, largest, broken)


def _breaches(row: RowTokens, limits: PromptLimits) -> Iterator[str]:
    if limits.prompt is not None and row.prompt > limits.prompt:
        yield f"expected at most {limits.prompt} prompt tokens, found {row}"
    if limits.context is not None and row.prompt + limits.completion > limits.context:
        yield (
            f"expected prompt and {limits.completion} completion tokens within the engine's "
            f"{limits.context}, found {row}"
        )
    if limits.image is not None and row.image > limits.image:
        yield f"expected at most {limits.image} image tokens at once, found {row}"
