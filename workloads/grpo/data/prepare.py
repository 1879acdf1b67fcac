"""The rows of a profile: read or drawn, counted in tokens, in the form of trainers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.data.build_once import built_once, nothing
from workloads.data.row_files import PACKED, TABLES, TEXTS
from workloads.engine.hub import hub
from workloads.engine.pretrained.files import is_local, positions
from workloads.errors import UserError
from workloads.grpo import prompts
from workloads.grpo.config import GENERATED, GrpoConfig, GrpoData
from workloads.grpo.data.remarks import describe_images, describe_solutions
from workloads.grpo.data.rows import (
    Example,
    Examples,
    generate_scenes,
    read_examples,
    training_dataset,
    with_images,
    write_imagefolder,
)
from workloads.grpo.data.tokens import (
    ImageRules,
    PromptLimits,
    PromptText,
    RowTokens,
    TokenReport,
    count_rows,
    read_image_rules,
    read_prompt_text,
    report,
)
from workloads.grpo.rewards.functions import right_completion
from workloads.grpo.rewards.scoring import load_scorer, try_rewards
from workloads.grpo.tools import load_tools

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_FILES = (
    *(f"*{ending}" for ending in (*TEXTS, *TABLES)),
    *(f"*{text}{packing}" for text in TEXTS for packing in PACKED),
    *("*.png", "*.jpg", "*.jpeg", "*.webp", "*.gif", "*.bmp", "*.tif", "*.tiff"),
)
# Models whose image tokens follow from an image's size by known rules.
_QWEN = ("qwen2_vl", "qwen2_5_vl")
_SHOWN = 5
_LOOKED_AT = 200  # images opened before a run to find blank ones
_SHARE = 10  # at most one row in so many is held out


@dataclass
class Prepared:
    """Rows to train on, remarks on all of them, and held-out rows.

    `counted`: both kinds of rows as they were read, each with the tokens of its prompt.
    """

    examples: list[Example]
    lines: list[str]
    held_out: list[Example] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    tokens: TokenReport | None = None
    counted: list[tuple[Example, RowTokens]] = field(default_factory=list)

    def digest(self) -> str:
        """Digest of questions and solutions in order, and of the sizes of images."""
        state = hashlib.sha256()
        for example in [*self.examples, *self.held_out]:
            row = [example.problem, example.before, example.solution, example.sizes]
            state.update(json.dumps(row).encode())
        return state.hexdigest()[:12]


def place_of(data: GrpoData, cache: Path, progress: Callable[[], None] = nothing) -> Path:
    """The file or folder of the rows, downloaded or drawn if it does not exist yet.

    Raises UserError where `data.source` is neither a file, a folder nor a hub id.
    """
    if data.source == GENERATED:
        return _drawn(data, cache, progress)
    if is_local(data.source):
        path = Path(data.source).expanduser()
        if not path.exists():
            raise UserError(
                f"data.source: expected a file, a folder or a hub id, found {data.source!r}, "
                f"which does not exist; correct the path{hub.nearest_folder(data.source)}"
            )
        return path
    return hub.fetch(data.source, _HUB_FILES, data.revision, kind="dataset")


def _drawn(data: GrpoData, cache: Path, progress: Callable[[], None]) -> Path:
    """The drawn scenes as an imagefolder in the cache, made once for the same settings."""
    wanted = data.scenes
    facts = json.dumps(wanted.model_dump(), sort_keys=True)
    folder = cache / "scenes" / hashlib.sha256(facts.encode()).hexdigest()[:16]

    def build(part: Path) -> None:
        rows = generate_scenes(
            wanted.count,
            wanted.seed,
            wanted.palette,
            (wanted.least, wanted.most),
            (wanted.width, wanted.height),
            wanted.questions,
            wanted.sizes,
        )
        write_imagefolder(rows, part)

    built_once(folder, build, progress)
    return folder


def read_source(data: GrpoData, cache: Path, progress: Callable[[], None] = nothing) -> Examples:
    """All readable rows, in order, and the ones left out; UserError past `max_bad_rows`."""
    root = Path(data.image_root).expanduser() if data.image_root else None
    columns = {str(name): column for name, column in data.columns.items()}
    found = read_examples(
        place_of(data, cache, progress), columns, data.split, root, data.max_bad_rows, progress
    )
    if data.rows is not None:
        found.rows = found.rows[: data.rows]
    return found


def prepare(
    config: GrpoConfig, base: Path, cache: Path, progress: Callable[[], None] = nothing
) -> Prepared:
    """Read every row and compare its prompt with the limits, before any GPU is used.

    base: the folder of the model's files. Rows that do not fit end the run with their names, or are
    left out with `data.too_long=drop`. Raises UserError where none is left.
    """
    data = config.data
    found = read_source(data, cache, progress)
    progress()
    counted = count(config, base, found.rows)
    tokens, examples = counted.report, found.rows
    if tokens.broken and data.too_long == "error":
        tokens.raise_if_broken()
    elif tokens.broken:
        examples = [example for example, good in zip(examples, counted.fits, strict=True) if good]
    if not examples:
        raise UserError(
            f"{data.source}: expected rows that fit the limits, found none; "
            "raise grpo.max_prompt_length, or lower grpo.max_pixels"
        )
    kept = len(examples) - min(config.evaluation.rows, len(examples) // _SHARE)
    examples, held_out = with_images(examples[:kept], data.pictures), examples[kept:]
    lines = _lines(data, examples, found, tokens)
    if held_out:
        lines.append(f"held out of training: the last {len(held_out):,} rows")
    facts = {
        "source": data.source,
        "rows": len(examples),
        "held_out": len(held_out),
        "bad_rows": [str(row) for row in found.bad],
        "left_out": len(found.rows) - len(examples) - len(held_out),
        "longest_prompt": tokens.longest.prompt if tokens.longest else None,
    }
    return Prepared(examples, lines, held_out, facts, tokens, counted.good)


@dataclass(frozen=True)
class Counting:
    """Tokens of all rows, whether each fits, and tokens of those that fit."""

    report: TokenReport
    fits: list[bool]
    good: list[tuple[Example, RowTokens]]


def count(config: GrpoConfig, base: Path, examples: Sequence[Example]) -> Counting:
    """Count the tokens of prompts, and of the supervised stage's answers, against the limits."""
    own = _read(base / "config.json")
    rules = _rules(config, base, own, examples)
    limits = _limits(config, own)
    schemas = load_tools(config.tools).schemas
    text = read_prompt_text(base, "vision_config" in own, schemas, config.model)
    rows = list(count_rows(examples, text, rules, turns_of(config.data)))
    if config.stage == "sft":
        pairs = zip(rows, examples, strict=True)
        rows = [_with_answer(row, example, text, config) for row, example in pairs]
    fits = [not report([row], limits).broken for row in rows]
    good = [
        (example, row)
        for example, row, fit in zip(examples, rows, fits, strict=True)
        if fit and isinstance(row, RowTokens)
    ]
    return Counting(report(rows, limits), fits, good)


def right_answer(config: GrpoConfig, solution: str) -> str:
    """The answer that a stage aims at: the taught text, or R1's form around a solution."""
    if config.stage == "sft":
        return config.sft.answer.replace("{solution}", solution)
    return right_completion(solution)


def _with_answer(
    row: RowTokens | str, example: Example, text: PromptText, config: GrpoConfig
) -> RowTokens | str:
    """The row, or an error for a too long answer: a cut one would teach never to end."""
    size = text.answer(right_answer(config, example.solution))
    longest = config.grpo.max_completion_length
    if isinstance(row, str) or size < longest:
        return row
    return (
        f"{example.place}: expected an answer of fewer than {longest} tokens "
        f"(grpo.max_completion_length), found {size}"
    )


def _rules(
    config: GrpoConfig, folder: Path, own: Mapping[str, Any], examples: Sequence[Example]
) -> ImageRules:
    """The model's rules for images; rows of text need none."""
    has_images = any(example.images for example in examples)
    if has_images and "vision_config" not in own:
        raise UserError(
            f"{config.data.source}: expected rows of text for {config.model.name}, which takes no "
            "images, found rows with images; choose a vision-language model"
        )
    if not has_images:
        return ImageRules()
    if own.get("model_type") in _QWEN:
        return read_image_rules(folder, config.grpo.min_pixels, config.grpo.max_pixels)
    return _fixed_rules(own)


def _fixed_rules(own: Mapping[str, Any]) -> ImageRules:
    """Rules under which every image costs as many tokens as a fixed grid of patches does."""
    vision = own.get("vision_config") or {}
    side, patch = vision.get("image_size"), vision.get("patch_size")
    if not isinstance(side, int) or not isinstance(patch, int):
        raise UserError(
            f"{own.get('model_type')}: expected a model whose image tokens can be counted ahead "
            f"(Qwen2-VL, Qwen2.5-VL, or a fixed grid), found neither; choose another model"
        )
    # With the strategy `full` the tower's class token is kept, too.
    whole = own.get("vision_feature_select_strategy") == "full"
    return _Grid(tokens_each=(side // patch) ** 2 + whole, side=side)


@dataclass(frozen=True)
class _Grid(ImageRules):
    """Every image is scaled to one square, and cut into the same number of tokens."""

    tokens_each: int = 0
    side: int = 0

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        return self.side, self.side

    def tokens(self, width: int, height: int) -> int:
        return self.tokens_each


def _limits(config: GrpoConfig, own: Mapping[str, Any]) -> PromptLimits:
    engine = config.generation
    uses_vllm = config.stage == "grpo" and engine.engine != "transformers"
    context = (engine.max_model_length if uses_vllm else None) or positions(own)
    # TRL lets a colocated engine take this many tokens at once; a whole image has to fit.
    image = 4096 if uses_vllm and engine.engine == "vllm_colocate" else None
    grpo = config.grpo
    return PromptLimits(grpo.max_completion_length, grpo.max_prompt_length, context, image)


def _lines(
    data: GrpoData, examples: Sequence[Example], found: Examples, tokens: TokenReport
) -> list[str]:
    seeing = sum(bool(example.images) for example in examples)
    lines = [f"data: {len(examples):,} rows of {data.source}, {seeing:,} with an image"]
    if several := sum(len(example.images) > 1 for example in examples):
        lines[0] += f", {several:,} with several"
    if 0 < seeing < len(examples):
        lines.append(f"{len(examples) - seeing:,} rows of text among them")
    lines += found.notes + describe_solutions(found.rows) + describe_images(found.rows, _LOOKED_AT)
    if tokens.longest is not None:
        lines.append(f"longest prompt: {tokens.longest} at {tokens.longest.place}")
    left_out = [*map(str, found.bad), *tokens.broken]
    lines += [f"left out: {item}" for item in left_out[:_SHOWN]]
    if len(left_out) > _SHOWN:
        lines.append(f"left out: {len(left_out) - _SHOWN} more, named by `tatara check --deep`")
    return lines


def turns_of(data: GrpoData) -> prompts.Wording:
    """How a profile words questions: as R1-V, or by its own template."""
    known = {"r1v": prompts.TRAINING, "geoqa": prompts.GEOQA, "superclevr": prompts.SUPERCLEVR}
    own = data.prompt_template
    return prompts.Wording(
        with_image=own or known[data.prompt],
        text_only=own or prompts.QUESTION,
        system=data.system_prompt,
        text_system=None if own else prompts.R1_SYSTEM,
        is_own=own is not None,
    )


def try_on(config: GrpoConfig, example: Example) -> list[str]:
    """Try the profile's rewards on a right answer to one row; see `try_rewards`."""
    row = dict(dataset_of([example], config.data)[0])
    solution = row.pop("solution")
    said = right_answer(config, example.solution)
    return try_rewards(load_scorer(config.rewards).rewards, said, solution, row)


def dataset_of(examples: Sequence[Example], data: GrpoData) -> "Dataset":
    """The rows as a dataset for trainers, in the profile's wording."""
    return training_dataset(examples, turns_of(data))


def _read(path: Path) -> dict[str, Any]:
    from workloads.json_files import read_json

    return read_json(path)


__all__ = [
    "Counting",
    "Prepared",
    "RowTokens",
    "count",
    "dataset_of",
    "place_of",
    "prepare",
    "read_source",
    "right_answer",
    "try_on",
    "turns_of",
]
