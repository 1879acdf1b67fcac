"""Held-out questions that were answered at each evaluation: `<run>/evaluation/samples.jsonl`."""

from dataclasses import dataclass, field

from workloads.monitor.reading.follow import Follower, whole
from workloads.run import Run

_READ = 8 << 20  # bytes from the end of the file
_QUESTIONS = 24


@dataclass
class Sample:
    """One question, the answer that its row has, and what the model said at each step."""

    place: str
    asked: str
    answer: str
    outputs: dict[int, str] = field(default_factory=dict)

    def some(self, most: int) -> list[tuple[int, str]]:
        """The first, the last and some between; a step that came again has its last answer."""
        steps = sorted(self.outputs)
        if len(steps) > most:
            steps = [steps[round(at * (len(steps) - 1) / (most - 1))] for at in range(most)]
        return [(step, self.outputs[step]) for step in steps]


def samples(run: Run) -> list[Sample]:
    """The questions in their order; empty where the run answers none."""
    found: dict[str, Sample] = {}
    follower = Follower(run.samples, forget=found.clear, tail=_READ)
    for row in follower.rows(limit=_READ):
        step, place = whole(row.get("step")), str(row.get("place"))
        if step is None or (place not in found and len(found) >= _QUESTIONS):
            continue
        if place not in found:
            found[place] = Sample(place, str(row.get("asked", "")), str(row.get("answer", "")))
        found[place].outputs[step] = str(row.get("output", ""))
    return list(found.values())
