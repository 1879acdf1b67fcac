"""SuperCLEVR counting or GEOQA on the exported model of a run, or on any vision-language model.

Questions, extraction and scores are R1-V's. The same command resumes where it stopped.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workloads.engine.evaluate_command import Progress, Target, add_target, say, target_of
from workloads.errors import EXIT_DONE, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = add_target(parser, "JSON file of the result")
    what.add_argument(
        "--rescore", type=Path, metavar="RESULT", help="score a finished result's answers again"
    )
    parser.add_argument("--prompts", type=Path, help="JSONL file of the questions")
    parser.add_argument("--images", type=Path, help="their folder, or a zip or tar file of them")
    parser.add_argument(
        "--engine", choices=["transformers", "vllm"], default="transformers",
        help="engine that generates the answers (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=1, help="questions at a time")
    parser.add_argument("--rows", type=int, help="ask only the first N questions")
    parser.add_argument(
        "--max-pixels", type=int, help="scale larger images down to this many pixels"
    )


def main(args: argparse.Namespace, env: dict[str, str]) -> int:
    """Answer the questions, score the answers, and print a table beside the published scores.

    Raises UserError for arguments that are missing or below 1.
    """
    from workloads.grpo.evaluate.tasks import TASKS, evaluate, read_questions, rescore, table

    if args.rescore is not None:
        _check_rescore(args)
        task = TASKS[args.task]
        result, before = rescore(task, args.rescore, args.output)
        print(table(task, result, f"{args.rescore}, scored again"))
        print(f"before: {before:.2f} %")
        return EXIT_DONE
    if args.prompts is None or args.images is None:
        missing = "--prompts" if args.prompts is None else "--images"
        raise UserError(
            f"expected --prompts and --images, the questions and their images, found no {missing}; "
            "docs/grpo.md says where they come from, and `tatara data generate questions DIR` "
            "generates some to try"
        )
    for name in ("batch_size", "rows", "max_pixels"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1, found {value}")
    task = TASKS[args.task]
    target = target_of(args, env, "grpo")
    name = target.name
    questions = read_questions(task, args.prompts, image_folder(args.images))[: args.rows]
    out = target.output or target.folder / f"{task.name}.json"
    load = _vllm if args.engine == "vllm" else _transformers
    generate = load(name, target.precision, args.max_pixels)
    progress = Progress("questions")
    result = evaluate(
        task, questions, generate, out, _identity(target, args), args.batch_size, progress
    )
    progress.clear()
    print(table(task, result, name))
    print(f"answers: {out}")
    return EXIT_DONE


def _check_rescore(args: argparse.Namespace) -> None:
    """Raise UserError for what would be ignored, or would overwrite the result that is scored."""
    asking = ("prompts", "images", "rows", "max_pixels", "precision")
    if given := [name for name in asking if getattr(args, name) is not None]:
        raise UserError(
            f"--{given[0].replace('_', '-')}: --rescore asks no questions, it takes a result's "
            "answers as they are; leave it out"
        )
    if args.output is not None and args.output.resolve() == args.rescore.resolve():
        raise UserError(
            f"--output: expected another file than the result, found {args.output}; name a new one"
        )


def _identity(target: Target, args: argparse.Namespace) -> str:
    """Identity of the answers: the model, the step of its export, and all settings."""
    name = target.name
    facts = Path(name) / "tatara.json"
    at = ""
    if facts.is_file():
        from workloads.json_files import read_json

        at = f" at step {read_json(facts).get('step')}"
    settings = f"{args.engine}, {target.precision}, max_pixels {args.max_pixels}"
    return f"{name}{at}, {settings}"


def image_folder(place: Path) -> Path:
    """The folder of images; an archive is unpacked beside itself, once.

    Raises UserError where there is neither a folder nor an archive.
    """
    if not place.is_file():
        if place.is_dir():
            return place
        raise UserError(f"--images: expected a folder or an archive, found none at {place}")
    from workloads.data.archives import unpack

    name = place.name
    for suffix in (".gz", ".bz2", ".xz", ".tgz", ".tar", ".zip"):
        name = name.removesuffix(suffix)
    folder = place.with_name(name if name != place.name else f"{name}-images")
    if not folder.is_dir():
        say(f"unpacking {place}")
        unpack(place, folder)
    return folder


def _transformers(name: str, precision: str, max_pixels: int | None) -> Callable[..., list[str]]:
    """Answers by transformers, left-padded; a batch that does not fit is halved."""
    from workloads.grpo.model import answers, load_for_use, sees_images
    from workloads.grpo.objective import Grpo

    loaded = load_for_use(name, precision, Grpo(max_pixels=max_pixels), say)
    if not sees_images(loaded.model.config):
        raise UserError(
            f"{name}: expected a vision-language model, found {loaded.model.config.model_type}, "
            "which takes no images; name another model"
        )

    def generate(prompts: Sequence[Any]) -> list[str]:
        turns, images = [prompt.turns for prompt in prompts], [[prompt.image] for prompt in prompts]
        longest = prompts[0].max_new_tokens
        return answers(loaded.model, loaded.processing, turns, images, longest)

    return generate


def _vllm(name: str, precision: str, max_pixels: int | None) -> Callable[..., list[str]]:
    """Answers by vLLM, also greedy, with the same repetition penalty."""
    from workloads.engine.generate.vllm import VllmEngine, check_vllm

    check_vllm(name)
    from workloads.config.sections import Model, Train
    from workloads.engine.pretrained.base import find_base
    from workloads.engine.pretrained.files import compute_dtype
    from workloads.grpo.model import load_processing, prompt_texts
    from workloads.grpo.objective import Grpo
    from workloads.grpo.rollouts.engine import pixel_limits

    base = find_base(Model(name=name), say)
    grpo = Grpo(max_pixels=max_pixels)
    processing = load_processing(base, grpo)
    options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1}}
    if pixels := pixel_limits(grpo):
        options["mm_processor_kwargs"] = pixels
    dtype = compute_dtype(Train.model_validate({"precision": precision}))
    engine = VllmEngine(base.folder, dtype, **options)

    def generate(prompts: Sequence[Any]) -> list[str]:
        texts = prompt_texts(processing, [prompt.turns for prompt in prompts])
        pairs = zip(texts, prompts, strict=True)
        asked = [
            {"prompt": text, "multi_modal_data": {"image": prompt.image}} for text, prompt in pairs
        ]
        return engine.generate(asked, prompts[0].max_new_tokens)

    return generate
