"""Runs lm-evaluation-harness (lm_eval 0.4) on a loaded model; scores are files of a run."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from workloads.engine.hub import hub
from workloads.errors import TataraError, UserError, did_you_mean
from workloads.llm.evaluate.task_files import OwnTask
from workloads.llm.speaker import Speaker

_RESAMPLED = 1000  # for standard errors without a formula
_OWN = "lm_eval/tasks/"  # where the package keeps its task files


@dataclass(frozen=True)
class Scores:
    """One task, or a group's mean: measures by name from 0 to 1 with their standard errors.

    answers: one row a question: question, output, expected answer, whether it was right.
    """

    task: str
    rows: int
    measures: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        """The scores as in the summary file and `--json`."""
        errors = {f"{name}_stderr": error for name, error in self.errors.items()}
        return {"task": self.task, "rows": self.rows, **self.measures, **errors}

    def write(self, folder: Path) -> None:
        """`<task>.json`, and beside it the answers that it names."""
        folder.mkdir(parents=True, exist_ok=True)
        name = self.task.replace("/", "--")
        facts = self.facts
        if self.answers:
            facts["answers"] = f"{name}-answers.jsonl"
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.answers]
            (folder / facts["answers"]).write_text("".join(lines), encoding="utf-8")
        text = json.dumps(facts, ensure_ascii=False, indent=1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Harness:
    """The model for lm_eval, with its batch size; limit: questions of each task."""

    speaker: Speaker
    batch_size: int
    limit: int | None = None

    def own(self, tasks: Sequence[OwnTask], most: int) -> list[Scores]:
        """Evaluate tasks from rows, with prompts as in training; most: tokens of an answer."""

        def prompt(question: str) -> str:
            return self.speaker.prompt([{"role": "user", "content": question}])

        return self._scores([task.config(prompt, most) for task in tasks], chat=False, shots=None)

    def named(self, tasks: Sequence[Any], shots: int | None, plain: bool) -> list[Scores]:
        """Evaluate tasks and groups of lm_eval; in the chat template, if any, unless `plain`."""
        chat = bool(self.speaker.tokenizer.chat_template) and not plain
        return self._scores(list(tasks), chat=chat, shots=shots)

    def _scores(self, tasks: list[Any], chat: bool, shots: int | None) -> list[Scores]:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # It would override the length that a task sets.
        self.speaker.model.generation_config.max_new_tokens = None
        model = HFLM(
            pretrained=self.speaker.model,
            tokenizer=self.speaker.tokenizer,
            batch_size=self.batch_size,
            # A rendered prompt already has the start token.
            add_bos_token=False if not chat else None,
        )
        try:
            found = simple_evaluate(
                model,
                tasks=tasks,
                num_fewshot=shots,
                limit=self.limit,
                apply_chat_template=chat,
                bootstrap_iters=_RESAMPLED,
                task_manager=TaskManager(include_defaults=False),
            )
        except (KeyError, ValueError, OSError) as error:
            raise UserError(f"eval tasks: {str(error).strip().splitlines()[0]}") from error
        return list(_read(found))


def _read(found: Any) -> Iterator[Scores]:
    for name, results in found["results"].items():
        measures, errors = dict[str, float](), dict[str, float]()
        for key, value in results.items():
            measure, _, way = key.partition(",")
            if not way or not isinstance(value, int | float):
                continue
            # Several filters of one measure are distinguished by the filter's name.
            name_of = measure if way in ("none", "stripped") else f"{measure} ({way})"
            if measure.endswith("_stderr"):
                errors[name_of.replace("_stderr", "")] = float(value)
            else:
                measures[name_of] = float(value)
        samples = found.get("samples", {}).get(name, [])
        rows = found["n-samples"].get(name, {}).get("effective", len(samples))
        yield Scores(name, rows, measures, errors, [_answer(sample) for sample in samples])


def _answer(sample: Any) -> dict[str, Any]:
    """One question as the report shows it; of several choices the likeliest is the output."""
    asked, target, responses = sample["arguments"], sample["target"], sample["filtered_resps"]
    row = {"index": sample["doc_id"], "question": asked[0][0]}
    if isinstance(responses[0], str):
        row |= {"output": responses[0], "answer": target}
    else:
        likelihoods = [float(response[0]) for response in responses]
        texts = [arguments[-1] for arguments in asked]
        row["output"] = texts[likelihoods.index(max(likelihoods))]
        is_index = str(target).isdecimal() and int(target) < len(texts)
        row |= {"answer": texts[int(target)] if is_index else target}
        row["log_likelihoods"] = likelihoods
    for measure in sample["metrics"]:
        if isinstance(sample.get(measure), int | float):
            row[measure] = bool(sample[measure]) if sample[measure] in (0, 1) else sample[measure]
    return row


def named_tasks(names: Sequence[str]) -> list[Any]:
    """Load tasks and groups by name or file, with their datasets; raises UserError if missing."""
    manager = _manager(names)
    built: list[Any] = []
    for name in names:
        try:
            found = manager.load([name])
            built += list(found["groups"].values()) or list(found["tasks"].values())
        except Exception as error:
            known = hub.explain(error, _dataset(manager, name), "dataset")
            if known is None:
                raise TataraError(f"task {name}: {str(error).strip().splitlines()[0]}") from error
            raise type(known)(f"task {name}: its dataset cannot be loaded: {known}") from error
    return built


def task_list(names: Sequence[str]) -> Iterator[str]:
    """Lines for each name with its file and dataset, and the tasks of a group; without network."""
    manager = _manager(names)
    for name in names:
        yield from _lines(manager, name, "")


def _lines(manager: TaskManager, name: str, indent: str) -> Iterator[str]:
    entry = manager.task_index.get(name)
    below = _below(manager, name)
    path = str(entry.yaml_path or "") if entry else name
    kind = f"group of {len(below)}" if below else f"dataset {_dataset(manager, name)}"
    yield f"{indent}{name}: {kind}" + (f", {path[max(0, path.find(_OWN)) :]}" if path else "")
    for task in below:
        yield from _lines(manager, task, f"{indent}  ")


def _below(manager: TaskManager, name: str) -> list[str]:
    """The tasks and groups that a group names, and those that carry it as a tag."""
    entry = manager.task_index.get(name)
    inner = (entry.cfg or {}).get("task", []) if entry else []
    if isinstance(inner, str) or entry is None:
        return []
    named = [
        item if isinstance(item, str) else str(item.get("task", item.get("group")))
        for item in inner
    ]
    tagged = [task for task, other in manager.task_index.items() if name in other.tags]
    return list(dict.fromkeys([*named, *tagged]))


def _dataset(manager: TaskManager, name: str) -> str:
    entry = manager.task_index.get(name)
    config = (entry.cfg if entry else None) or {}
    return " ".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))


def _manager(names: Sequence[str]) -> TaskManager:
    """Index of lm_eval's tasks, if a name needs it; raises UserError for unknown names."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    by_name = [name for name in names if not Path(name).is_file()]
    manager = TaskManager(include_defaults=bool(by_name))
    for name in by_name:
        if name not in manager.task_index:
            near = did_you_mean(name, manager.all_tasks)
            raise UserError(f"--tasks: unknown task {name!r}; {near[:400]}")
    return manager
