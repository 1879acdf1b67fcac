"""Held-out questions that were answered at each evaluation: `<run>/evaluation/samples.jsonl`."""

from dataclasses import dataclass, field

from workloads.monitor.reading.follow import Follower, whole
from workloads.run import Run

_READ = 8 << 20  # bytes from the end of the file
_QUESTIONS = 24


@dataclass
class Sample:
    """One question, its reference answer, and the model's answer at each step."""

    place: str
    asked: str
    answer: str
    outputs: dict[int, str] = field(default_factory=dict)

    def some(self, most: int) -> list[tuple[int, str]]:
        """The first, the last and some between; a repeated step has its last answer."""
        steps = sorted(self.outputs)
        if len(steps) > most:
            steps = [steps[round(at * (len(steps) - 1) / (most - 1))] for at in range(most)]
        return [(step, self.outputs[step]) for step in steps]

    def is_right(self, step: int) -> bool:
        """Whether the answer at a step is the row's, to the letter."""
        return self.outputs[step].strip() == self.answer.strip()


class SampleReader:
    """The questions of one run, read again and again as they are answered anew."""

    def __init__(self, run: Run) -> None:
        self._found: dict[str, Sample] = {}
        self._follower = Follower(run.samples, forget=self._found.clear, tail=_READ)

    def read(self) -> list[Sample]:
        """The questions in their order; empty where the run answers none."""
        for row in self._follower.rows(limit=_READ):
            step, place = whole(row.get("step")), str(row.get("place"))
            if step is None or (place not in self._found and len(self._found) >= _QUESTIONS):
                continue
            if place not in self._found:
                asked, answer = str(row.get("asked", "")), str(row.get("answer", ""))
                self._found[place] = Sample(place, asked, answer)
            self._found[place].outputs[step] = str(row.get("output", ""))
        return list(self._found.values())


def samples(run: Run) -> list[Sample]:
    """The questions in their order; empty where the run answers none."""
    return SampleReader(run).read()
