"""Train and use language models from Python; what is here stays as it is.

from workloads import api

run = api.train([{"question": "1 + 1?", "answer": "2"}], "profiles/demo.yaml")
model = api.load(run)
print(api.generate(model, "2 + 2?"))
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.errors import EXIT_DONE, TataraError, UserError

if TYPE_CHECKING:
    from workloads.llm.speaker import Speaker
    from workloads.run import Run

Rows = Iterable[Mapping[str, Any] | str]


def train(
    rows: Rows | None = None,
    profile: str = "profiles/demo.yaml",
    settings: Mapping[str, Any] | None = None,
) -> "Run":
    """Train as a profile says and return the run, exported and evaluated as `tatara train` does.

    rows: texts, or objects in any format of data.format; default: the profile's data.
    settings: values by their names, such as {"optim.learning_rate": 1e-4}. Raises UserError for
    mistakes in them, TataraError where the training fails.
    """
    from workloads.cli import main
    from workloads.commands.common import loaded_environment, profile_path
    from workloads.config.merge import resolve
    from workloads.run import outputs

    env = loaded_environment()
    given = dict(settings or {})
    if rows is not None:
        rows = list(rows)
        given["data.source"] = str(_written(rows, outputs(env)))
    words = [f"{name}={_as_yaml(value)}" for name, value in given.items()]
    config, _ = resolve(profile_path(profile, env), env, words)
    if config.workload != "llm":
        raise UserError(f"expected a profile of workload llm, found {config.workload} in {profile}")
    if rows is not None and "data.format" not in given and isinstance(rows[0], str):
        words += ["data.format=text"]
    folder = outputs(env) / config.name
    before = {path for path in folder.glob("*/config.json")}
    code = main(["train", profile, *words])
    made = sorted(path.parent for path in folder.glob("*/config.json") if path not in before)
    if code != EXIT_DONE or not made:
        raise TataraError(f"training ended with code {code}; its messages are above")
    from workloads.run import Run

    return Run(made[-1])


def load(
    model: "Run | str | Path",
    adapters: Mapping[str, str | Path] | None = None,
    precision: str | None = None,
) -> "Speaker":
    """Load a model to generate with: a run's exported model, a folder, or a name on the hub.

    adapters: name → folder of further adapters over the same base. precision: bf16, fp16 or fp32;
    default: that of the run. Raises UserError where a model or adapter is missing.
    """
    from workloads.commands.common import loaded_environment
    from workloads.llm.speaker import load as load_speaker
    from workloads.run import Run, outputs
    from workloads.run.models import exported_model

    wanted = str(model.path if isinstance(model, Run) else model)
    name, run = exported_model(wanted, outputs(loaded_environment()), "llm")
    config = run.config() if run else None
    computed = precision or (config.train.precision if config else "bf16")
    speaker = load_speaker(name, computed, lambda text: None, config.data if config else None)
    for adapter, folder in (adapters or {}).items():
        speaker.add_adapter(adapter, Path(folder))
    return speaker


def generate(
    model: "Speaker",
    prompts: str | Sequence[str | Sequence[Mapping[str, Any]]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 0.9,
    top_k: int = 50,
    seed: int | None = None,
    batch_size: int = 16,
) -> Any:
    """Generate answers to prompts, in their order; one text gives one answer.

    prompts: a text, or a list of texts or of conversations (turns with role and content). Without a
    temperature the likeliest token is taken each time. Raises UserError for a prompt that leaves
    the model no room.
    """
    from workloads.llm.speaker import Sampling

    if isinstance(prompts, str):
        return generate(
            model,
            [prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            batch_size=batch_size,
        )[0]
    greedy = temperature == 0
    sampling = Sampling(max_new_tokens, greedy, temperature or 1.0, top_p, top_k, seed)
    talks = [
        [{"role": "user", "content": prompt}]
        if isinstance(prompt, str)
        else list(map(dict, prompt))
        for prompt in prompts
    ]
    return model.answers(talks, sampling, batch_size)


def _written(rows: Rows, folder: Path) -> Path:
    """Write the rows to a file named by their digest, so that a resumed run finds it."""
    objects = [{"text": row} if isinstance(row, str) else dict(row) for row in rows]
    if not objects:
        raise UserError("expected rows to train on, found none")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects)
    name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    path = folder / "rows" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path.resolve()


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


__all__ = ["generate", "load", "train"]
