"""Log of the completions that the model generated during training.

`rollouts/rollouts.jsonl` in the run: one object a completion with step, place, prompt, completion,
solution, rewards (before weighting, null where one abstains), why (what each reward says of it),
reward (their weighted sum), advantage, image (a PNG beside it, or null) and, of several, images.
A bounded number for a step, whole groups first, so that completions of one prompt can be compared.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.grpo.config import Rollouts
from workloads.grpo.rewards.scoring import Score, completion_text
from workloads.run.session import Session

FOLDER, FILE, IMAGES = "rollouts", "rollouts.jsonl", "images"


@dataclass(frozen=True)
class Rollout:
    """One completion; `images` of Pillow or None, `advantage` as the loss weighs it."""

    place: str
    prompt: Any
    completion: Any
    solution: str
    scores: Mapping[str, Score]
    reward: float
    advantage: float
    images: Sequence[Any] = ()


class RolloutLog:
    """Writes rollouts into a run; after a resume it forgets the steps that are repeated."""

    def __init__(self, session: Session, wanted: Rollouts, done_steps: int) -> None:
        self._folder = session.run.path / FOLDER
        self._every, self._most = wanted.every_steps, wanted.per_step
        self._images: dict[str, list[str]] = {}
        if session.is_main:
            self._forget_after(done_steps)

    def wants(self, step: int) -> bool:
        """Whether completions of this step are kept: the first step's, and every n-th's."""
        return self._most > 0 and (step == 1 or step % self._every == 0)

    def write(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Append the first completions of a step; an image that many share is written once."""
        if not self.wants(step):
            return
        (self._folder / IMAGES).mkdir(parents=True, exist_ok=True)
        self._images = {}
        lines = [json.dumps(self._row(step, rollout)) for rollout in rollouts[: self._most]]
        with (self._folder / FILE).open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def _row(self, step: int, rollout: Rollout) -> dict[str, Any]:
        images = self._saved(step, rollout)
        return {
            "step": step,
            "place": rollout.place,
            "prompt": prompt_text(rollout.prompt),
            "completion": transcript(rollout.completion),
            "solution": rollout.solution,
            "rewards": {name: score.value for name, score in rollout.scores.items()},
            "why": {name: score.why for name, score in rollout.scores.items() if score.why},
            "reward": rollout.reward,
            "advantage": rollout.advantage,
            "image": images[0] if images else None,
            **({"images": images} if len(images) > 1 else {}),
        }

    def _saved(self, step: int, rollout: Rollout) -> list[str]:
        """The names of a completion's images, which those of one prompt share."""
        if rollout.place not in self._images:
            names: list[str] = []
            for image in rollout.images:
                if image is not None:
                    number = sum(map(len, self._images.values())) + len(names)
                    names.append(f"{IMAGES}/step-{step:06d}-{number}.png")
                    image.save(self._folder / names[-1])
            self._images[rollout.place] = names
        return self._images[rollout.place]

    def _forget_after(self, step: int) -> None:
        """Drop rows of steps after the checkpoint, which are repeated, and a line that was cut."""
        path = self._folder / FILE
        if not path.is_file():
            return
        kept = [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]
        kept = [line for line in kept if json.loads(line)["step"] <= step]
        partial = path.with_name(f".{FILE}.new")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(path)


def prompt_text(prompt: Any) -> str:
    """A prompt's turns as one text; an image stands as [image]."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn['role']}: {_content(turn['content'])}" for turn in prompt)


def transcript(completion: Any) -> str:
    """A completion as one text; where tools were called, turn by turn with the calls."""
    if isinstance(completion, str) or not any(turn.get("tool_calls") for turn in completion):
        return completion_text(completion)
    lines = []
    for turn in completion:
        calls = [call.get("function", call) for call in turn.get("tool_calls") or ()]
        said = [completion_text([turn])] if turn["role"] != "tool" else [_content(turn["content"])]
        said += [f"calls {call.get('name')}({json.dumps(call.get('arguments'))})" for call in calls]
        lines.append(f"{turn['role']}: {' '.join(text for text in said if text)}")
    return "\n".join(lines)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [part.get("text") or f"[{part.get('type')}]" for part in content]
    return " ".join(parts)


def read_rollouts(run: Path) -> list[dict[str, Any]]:
    """The rollouts of a run's folder, in the order in which they were written."""
    path = run / FOLDER / FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
