"""The reach or recall task after a training: scores before and after, controls, an image."""

from workloads.run.events import Event
from workloads.run.session import Session
from workloads.vla.reach.judge import TRAINED, UNTRAINED, TaskVerdict, judge, table, write
from workloads.vla.reach.policies import pair
from workloads.vla.reach.recall import judge_recall
from workloads.vla.reach.sheet import draw


def judge_exported(session: Session, task: str, scenes: int, seed: int) -> list[tuple[str, str]]:
    """Judge the policy in `final/`, keep scores and image; returns lines for people."""
    run = session.run
    trained, untrained = pair(run.final, session.report)
    judging = judge_recall if task == "recall" else judge
    verdict = judging(trained, untrained, scenes, seed, lambda done, total: session.progress())
    write(verdict, run.evaluation)
    image = draw(verdict, run.evaluation)
    session.event(Event.EVALUATED, when="after", **verdict.as_dict())
    session.report(table(verdict))
    return [*_changes(verdict), ("rollouts", str(image))]


def _changes(verdict: TaskVerdict) -> list[tuple[str, str]]:
    before, after = verdict.scores[UNTRAINED], verdict.scores[TRAINED]
    best = verdict.best_control
    low, high = after.range
    return [
        (
            f"reached of {after.scenes} scenes",
            f"{before.success:.0%} → {after.success:.0%}  (95 % range {low:.0%} to {high:.0%})",
        ),
        ("best control", f"{verdict.scores[best].success:.0%}, {best}"),
    ]
