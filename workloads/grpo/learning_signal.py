"""Signs in the logged rows that a run cannot learn, and what to change.

Each is reported once: on the console, in the events (which the monitor shows) and in the summary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from workloads.engine import distributed
from workloads.engine.training.callbacks import RunCallback
from workloads.grpo.config import GrpoConfig
from workloads.grpo.rewards.scoring import BUILT_IN
from workloads.grpo.rollouts.engine import stability_ladder
from workloads.run.events import Event
from workloads.run.session import Session

# Number of steps for which a sign must hold: few where nothing at all is learnt, more where the run
# may only have a bad phase, and before `on_no_signal: stop` ends it.
SOON, LASTING, SURE = 3, 5, 10
# Steps that give a run's initial values, and steps for a flat reward. Means over several steps
# (train.log_every) differ less by chance: a flat reward takes some rows of them.
_START, _FLAT_STEPS, _FLAT_ROWS = 5, 20, 5
_ALL = 0.999
# The first steps have next to no KL; some tenths are usual in a run that learns.
_KL_TIMES, _KL_LEAST = 50.0, 0.5
_COLLAPSED, _SHORTENED = 0.05, 0.1
_LEAST_ENTROPY, _LEAST_LENGTH = 0.1, 20.0
_FLAT = 1e-3

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Sign:
    """A sign that a run cannot learn: what was seen, and what to change."""

    name: str
    seen: str
    change: str

    def __str__(self) -> str:
        return f"{self.seen}; {self.change}"


class LearningSignal:
    """Examines every logged row; `found` has the signs so far."""

    def __init__(self, config: GrpoConfig, session: Session) -> None:
        self._config, self._session = config, session
        self._rows: list[Mapping[str, float]] = []
        self._since: dict[str, int] = {}
        self.found: dict[str, Sign] = {}
        self.stops = False

    @property
    def reason(self) -> str:
        """Why the run is to be stopped."""
        return "; ".join(str(sign) for sign in self.found.values())

    def take(self, step: int, row: Mapping[str, Any]) -> None:
        """Examine the rows up to this one and report new signs."""
        numbers = {
            name: float(value) for name, value in row.items() if isinstance(value, int | float)
        }
        # Every row counts as train.log_every steps, which the first one alone is not.
        if "reward" not in numbers or step % self._config.train.log_every:
            return
        self._rows.append(numbers)
        now = {sign.name: sign for check in CHECKS if (sign := check(self._rows, self._config))}
        self._since = {name: self._since.get(name, 0) + 1 for name in now}
        for name, sign in now.items():
            if name not in self.found:
                self.found[name] = sign
                self._session.report(f"step {step}: this run may not learn: {sign}")
                facts = {"sign": name, "seen": sign.seen, "change": sign.change}
                self._session.event(Event.NO_SIGNAL, step=step, **facts)
        rows = max(self._since.values(), default=0) + rows_of(SOON, self._config) - 1
        lasts = rows * self._config.train.log_every >= SURE
        self.stops = self._config.on_no_signal == "stop" and lasts


class SignalCallback(TrainerCallback):
    """Passes logged rows to a LearningSignal, and stops the run if it asks for that."""

    def __init__(self, signal: LearningSignal, run_callback: RunCallback) -> None:
        self._signal, self._run = signal, run_callback

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Examine a row; TRL has gathered it, so that every rank sees the same."""
        if logs is None or "train_runtime" in logs:
            return
        self._signal.take(state.global_step, logs)
        if distributed.agree(self._signal.stops) and state.global_step < state.max_steps:
            self._run.stopping = True
            control.should_save = control.should_training_stop = True


def rows_of(steps: int, config: GrpoConfig) -> int:
    """How many logged rows cover so many steps."""
    return -(-steps // config.train.log_every)


def _seen_steps(config: GrpoConfig) -> int:
    """The steps in the rows that cover `SOON`."""
    return rows_of(SOON, config) * config.train.log_every


def _last(rows: Rows, name: str, steps: int, config: GrpoConfig) -> list[float]:
    """The values of a metric in the rows of the last steps; none where there are fewer."""
    count = rows_of(steps, config)
    values = [row[name] for row in rows[-count:] if name in row]
    return values if len(values) == count else []


def _start(rows: Rows, name: str, config: GrpoConfig) -> float | None:
    count = rows_of(_START, config)
    values = [row[name] for row in rows[:count] if name in row]
    return median(values) if len(values) == count else None


def no_spread(rows: Rows, config: GrpoConfig) -> Sign | None:
    """No group has different rewards: every advantage is 0."""
    values = _last(rows, "frac_reward_zero_std", SOON, config)
    if not values or min(values) < _ALL:
        return None
    rewards = config.rewards.functions
    mean = fmean(_last(rows, "reward", SOON, config))
    most = sum(max(0.0, reward.weight) for reward in rewards)
    # The maximum of other rewards is unknown.
    is_bounded = not config.tools.environment and all(reward.name in BUILT_IN for reward in rewards)
    group = config.grpo.num_generations
    if is_bounded and most > 0 and mean >= most - 1e-6:
        change = "every completion earned everything: take harder rows"
    elif abs(mean) <= 1e-6:
        change = (
            "no completion earned anything: read rollouts/rollouts.jsonl (`why`), teach the form "
            f"first (stage=sft), take easier rows, raise grpo.num_generations (now {group})"
        )
    else:
        change = (
            f"raise grpo.num_generations (now {group}) or grpo.temperature (now "
            f"{config.grpo.temperature:g}), or take rows that are sometimes solved"
        )
    seen = f"in the last {_seen_steps(config)} steps no group had a spread of rewards"
    return Sign("no spread", seen, change)


def all_cut(rows: Rows, config: GrpoConfig) -> Sign | None:
    """Every completion is cut at the limit, before its answer."""
    values = _last(rows, "completions/clipped_ratio", SOON, config)
    if not values or min(values) < _ALL:
        return None
    limit = config.grpo.max_completion_length
    change = f"raise grpo.max_completion_length (now {limit}), or teach where an answer ends (sft)"
    if config.grpo.settled().get("mask_truncated_completions"):
        change += "; grpo.mask_truncated_completions leaves nothing to learn from"
    seen = f"in the last {_seen_steps(config)} steps all completions were cut at {limit}"
    return Sign("all cut", seen, change)


def kl_ran_away(rows: Rows, config: GrpoConfig) -> Sign | None:
    """The KL to the reference is many times its first values."""
    values, start = _last(rows, "kl", LASTING, config), _start(rows, "kl", config)
    if not values or start is None or min(values) < max(_KL_LEAST, _KL_TIMES * abs(start)):
        return None
    seen = f"the KL is {values[-1]:.3g}, it began with {start:.2g}"
    return Sign("KL ran away", seen, _calmer(config))


def entropy_collapsed(rows: Rows, config: GrpoConfig) -> Sign | None:
    """The completions of a prompt become identical before the task is learnt."""
    values, start = _last(rows, "entropy", LASTING, config), _start(rows, "entropy", config)
    if not values or start is None or start < _LEAST_ENTROPY:
        return None
    spread = _last(rows, "frac_reward_zero_std", LASTING, config)
    if max(values) > _COLLAPSED * start or (spread and min(spread) < 0.5):
        return None
    change = "grpo.epsilon_high=0.28, grpo.entropy.entropy_coef=0.01, or " + _calmer(config)
    return Sign(
        "entropy collapsed", f"the entropy fell from {start:.2g} to {values[-1]:.2g}", change
    )


def length_collapsed(rows: Rows, config: GrpoConfig) -> Sign | None:
    """Completions became too short to hold any reasoning."""
    name = "completions/mean_length"
    values, start = _last(rows, name, LASTING, config), _start(rows, name, config)
    if not values or start is None or start < _LEAST_LENGTH or max(values) > _SHORTENED * start:
        return None
    seen = f"completions fell from {start:.0f} to {values[-1]:.0f} tokens"
    change = "grpo.loss_type=dr_grpo or dapo, a reward that needs the reasoning, or " + _calmer(
        config
    )
    return Sign("length collapsed", seen, change)


def reward_flat(rows: Rows, config: GrpoConfig) -> Sign | None:
    """The mean reward stays exactly the same over many steps."""
    steps = max(_FLAT_STEPS, _FLAT_ROWS * config.train.log_every)
    values = _last(rows, "reward", steps, config)
    if not values or max(values) - min(values) > _FLAT * max(1.0, abs(values[-1])):
        return None
    seen = f"the reward stayed at {values[-1]:.3g} for {len(values) * config.train.log_every} steps"
    change = (
        f"raise optim.learning_rate (now {config.optim.learning_rate:g}), or look whether the "
        "rewards tell completions apart (rollouts/rollouts.jsonl)"
    )
    return Sign("reward flat", seen, change)


def _calmer(config: GrpoConfig) -> str:
    steps = stability_ladder(config)
    return " or ".join([*steps, "a higher grpo.beta"])


CHECKS: tuple[Callable[[Rows, GrpoConfig], Sign | None], ...] = (
    no_spread,
    all_cut,
    kl_ran_away,
    entropy_collapsed,
    length_collapsed,
    reward_flat,
)
