"""A plan as a table for people."""

from workloads.device import GIB, MIB
from workloads.plan.estimate import Breakdown, gib
from workloads.run.memory_parts import LABELS


def table(breakdown: Breakdown, memory_of_gpu: int | None = None) -> None:
    """Print a breakdown for people; a line of why where the shape is unknown."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if breakdown.unknown or breakdown.total is None or breakdown.shape is None:
        console.print(breakdown.unknown, markup=False)
        return
    console.print(_head(breakdown), markup=False)
    own = breakdown.total - breakdown.gpu.framework
    between = breakdown.between_steps(memory_of_gpu) if memory_of_gpu else 0
    grid = Table(show_edge=False, pad_edge=False)
    grid.add_column("memory of one GPU")
    grid.add_column("size", justify="right")
    for name, size in breakdown.parts.items():
        if size:
            grid.add_row(LABELS[name], _exact_size(size))
    grid.add_section()
    figures = {
        f"allocated, at the {breakdown.peak_at}": own,
        "reserved by the allocator": breakdown.reserved,
        "the process": breakdown.total,
        "between steps, with vLLM's share": between,
        "the GPU has": memory_of_gpu or 0,
    }
    for label, size in figures.items():
        if size:
            grid.add_row(label, _exact_size(size))
    console.print(grid)
    console.print(
        f"memory of a node {gib(breakdown.host_memory)}; disk {_size(breakdown.disk)}: "
        f"{breakdown.checkpoints_kept} checkpoints of {_size(breakdown.checkpoint_disk)}, "
        f"final model {_size(breakdown.final_disk)}",
        markup=False,
    )
    for note in breakdown.notes:
        console.print(f"note: {note}", markup=False)


def _exact_size(size: int) -> str:
    """GiB with two decimals; smaller sizes in MiB, so that nothing reads as zero."""
    if size >= GIB:
        return f"{size / GIB:.2f} GiB"
    return f"{size / MIB:.0f} MiB" if size >= 10 * MIB else f"{max(size / MIB, 0.01):.2f} MiB"


def _size(size: int) -> str:
    return gib(size) if size >= GIB // 10 else f"{size / MIB:.1f} MiB"


def _head(breakdown: Breakdown) -> str:
    assert breakdown.shape is not None
    shape, ranks = breakdown.shape, breakdown.world_size
    where = "one GPU" if ranks == 1 else f"{breakdown.strategy} on {ranks} GPUs"
    nodes = ranks // breakdown.ranks_per_node
    if nodes > 1:
        where += f" of {nodes} nodes"
    return (
        f"{shape.parameters:,} parameters ({shape.family}, from {breakdown.source}), {where}, "
        f"{breakdown.tokens:,} tokens a GPU and micro-batch"
    )
