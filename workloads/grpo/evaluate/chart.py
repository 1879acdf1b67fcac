"""Chart of a GRPO run: rewards by step, and on held-out rows."""

from pathlib import Path

from workloads.engine.summary import rows_of, series, smooth
from workloads.grpo.evaluate.scores import logged_rewards
from workloads.run import Run


def draw_rewards(run: Run) -> Path | None:
    """Write `<run>/rewards.png`; None where there is nothing to draw."""
    from matplotlib.figure import Figure

    rows = rows_of(run)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for place, reward in enumerate(logged_rewards(rows)):
        steps, values = series(rows, f"rewards/{reward}/mean")
        if not steps:
            continue
        drawn, colour = True, f"C{place}"
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        axes.plot(steps, smooth(values), color=colour, linewidth=2, label=reward)
        held_out = series(rows, f"held_out/{reward}")
        if held_out[0]:
            label = f"{reward}, held-out rows"
            axes.plot(*held_out, color=colour, marker="o", linestyle="--", label=label)
    if not drawn:
        return None
    title = f"{run.path.parent.name} · {run.id}"
    axes.set(xlabel="step", ylabel="mean reward", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    path = run.path / "rewards.png"
    figure.savefig(path, dpi=120)
    return path
