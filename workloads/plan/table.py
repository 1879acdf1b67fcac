"""A plan as a table for people."""

from workloads.plan.estimate import Breakdown, gib
from workloads.plan.gpu_memory import GIB

LABELS = {
    "weights": "weights and copies in the compute type",
    "master_weights": "master weights",
    "gradients": "gradients",
    "optimizer_states": "optimizer states",
    "adapter_states": "adapter with its gradients and states",
    "quantised_base": "quantised base",
    "activations": "activations",
    "logits": "logits",
    "communication": "communication buffers",
    "framework": "CUDA, libraries, fragmentation",
}


def table(breakdown: Breakdown, memory_of_gpu: int | None = None) -> None:
    """Print a breakdown for people; a line of why where the shape is unknown."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    if breakdown.unknown or breakdown.total is None or breakdown.shape is None:
        console.print(breakdown.unknown, markup=False)
        return
    shape = breakdown.shape
    console.print(
        f"{shape.parameters:,} parameters ({shape.family}, from {breakdown.source}), "
        f"{breakdown.strategy} on {breakdown.world_size} x 1 GPU, "
        f"{breakdown.tokens:,} tokens a GPU and micro-batch",
        markup=False,
    )
    grid = Table(show_edge=False, pad_edge=False)
    grid.add_column("memory of one GPU")
    grid.add_column("GiB", justify="right")
    for name, size in breakdown.parts.items():
        if size:
            grid.add_row(LABELS[name], f"{size / GIB:.2f}")
    grid.add_section()
    grid.add_row(f"highest, at the {breakdown.peak_at}", f"{breakdown.total / GIB:.2f}")
    if memory_of_gpu:
        grid.add_row("the GPU has", f"{memory_of_gpu / GIB:.2f}")
    console.print(grid)
    console.print(
        f"memory of a node {gib(breakdown.host_memory)}; disk {gib(breakdown.disk)}: "
        f"{breakdown.checkpoints_kept} checkpoints of {gib(breakdown.checkpoint_disk)}, "
        f"final model {gib(breakdown.final_disk)}",
        markup=False,
    )
    for note in breakdown.notes:
        console.print(f"note: {note}", markup=False)
