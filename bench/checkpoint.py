"""What do whole checkpoints cost? Sealed ones beside `torch.save` with and without fsync.

    python -m bench.checkpoint            # prints the figures
    python -m bench.checkpoint --write    # and writes docs/benchmarks/checkpoint.md

The state is that of AdamW over fp32 weights: a third weights, two thirds moments. Ours is what a
run does with it: safetensors and the optimizer's file into a staging folder, every file to disk
and digested, the seal written last, the folder renamed. The peer is one `torch.save`, then fsync.
Loading ours means reading every byte against its digest first.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from bench._pair import Side, Timed, benchmark_parser, facts, measure, write_page
from workloads.device import MIB
from workloads.run.integrity import newest_whole, publish, seal

State = dict[str, dict[str, torch.Tensor]]
TENSORS = 32
SAVE_GOAL, LOAD_GOAL = 1.0, 1.1


def main() -> None:
    parser = benchmark_parser("checkpoint", __doc__)
    parser.add_argument("--mib", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        parts = [_compare(size, Path(folder), options.rounds) for size in options.mib]
    known = facts(
        ["torch", "safetensors", "xxhash"],
        ["workloads/run/integrity.py", "bench/checkpoint.py", "bench/_pair.py"],
        options.machine,
    )
    print(known)
    if options.write:
        print(f"wrote {write_page('checkpoint', [*_introduction(), *parts, known])}")


def _introduction() -> list[str]:
    return [
        "# What a whole checkpoint costs",
        "A state of fp32 weights and AdamW's moments, saved and loaded in turns: ours as "
        "`model.safetensors` and `optimizer.pt` in a staging folder, each file brought to disk and "
        "digested, sealed, and the folder renamed; the peer as one file by `torch.save`, then "
        "fsync. Loading ours finds the newest checkpoint and reads every byte against its digest "
        "before the files are loaded; the peer's `torch.load` believes what it reads. Both copy "
        "them into tensors that are there, as a model does, and give back the same numbers, which "
        "is checked first. Times are those of a disk that others use "
        "too: ratios are taken within a turn.",
        f"The goals are {SAVE_GOAL:.1f} times the peer's time for saving with fsync, and "
        f"{LOAD_GOAL:.1f} times for loading. Saving is not asynchronous: a run waits for it.",
        "Run it: `python -m bench.checkpoint --write`.",
    ]


def _state(mib: int) -> State:
    numbers = mib * MIB // 4 // 3 // TENSORS
    generator = torch.Generator().manual_seed(0)

    def tensors() -> dict[str, torch.Tensor]:
        names = [f"layer.{number}" for number in range(TENSORS)]
        return {name: torch.randn(numbers, generator=generator) for name in names}

    return {name: tensors() for name in ("model", "exp_avg", "exp_avg_sq")}


def _compare(mib: int, folder: Path, rounds: int) -> str:
    state = _state(mib)
    ours, peer = folder / "ours", folder / "peer.pt"
    for path in (ours / "checkpoints", ours / ".staging"):
        path.mkdir(parents=True, exist_ok=True)
    save = [
        Side("ours, sealed", lambda: _save(state, ours)),
        Side("torch.save + fsync", lambda: _peer_save(state, peer)),
        Side("torch.save alone", lambda: torch.save(state, peer)),
    ]
    saved = _measure_saving(save, ours / "checkpoints", peer, rounds)
    targets = [_empty(state), _empty(state)]
    load = [
        Side("ours, verified", lambda: _fill(targets[0], _load(ours / "checkpoints"))),
        Side("torch.load", lambda: _fill(targets[1], torch.load(peer, weights_only=True))),
    ]
    loaded = measure(load, lambda found: _assert_same(state, found), rounds)
    shutil.rmtree(ours)
    peer.unlink()
    text = "\n\n".join(
        [
            f"## {mib} MiB",
            _table(saved, mib, {"torch.save + fsync": SAVE_GOAL}),
            _table(loaded, mib, {"torch.load": LOAD_GOAL}),
        ]
    )
    print(text, flush=True)
    return text


def _measure_saving(sides: Sequence[Side], checkpoints: Path, peer: Path, rounds: int) -> Timed:
    """Turns in which no side overwrites a file or waits for what another one left unwritten."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides:
            shutil.rmtree(checkpoints)
            checkpoints.mkdir()
            peer.unlink(missing_ok=True)
            start = time.perf_counter()
            side.run()
            if number:  # the first round warms up
                seconds[side.name].append(time.perf_counter() - start)
            if peer.exists():
                with peer.open("rb") as file:
                    os.fsync(file.fileno())
    sides[0].run()  # both are there when they are to be loaded
    return Timed(seconds)


def _save(state: State, folder: Path) -> None:
    """As a run saves: staged, sealed, published."""
    final = folder / "checkpoints" / "checkpoint-1"
    staged = folder / ".staging" / final.name
    staged.mkdir()
    save_file(state["model"], staged / "model.safetensors")
    torch.save({name: state[name] for name in ("exp_avg", "exp_avg_sq")}, staged / "optimizer.pt")
    seal(staged, {"step": 1})
    publish(staged, final)


def _peer_save(state: State, path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _load(folder: Path) -> State:
    """As a run resumes: only from a checkpoint whose every byte was read and is right."""
    found = newest_whole(folder, print)
    assert found is not None
    moments = torch.load(found / "optimizer.pt", weights_only=True)
    return {"model": load_file(found / "model.safetensors"), **moments}


def _empty(state: State) -> State:
    return {
        name: {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
        for name, tensors in state.items()
    }


def _fill(target: State, found: State) -> State:
    """Into tensors that are there, as a model takes its weights: a file is read only now."""
    for name, tensors in target.items():
        for key, tensor in tensors.items():
            tensor.copy_(found[name][key])
    return target


def _assert_same(state: State, outputs: Sequence[State]) -> None:
    for output in outputs:
        for name, tensors in state.items():
            for key, tensor in tensors.items():
                assert torch.equal(output[name][key], tensor), f"{name}.{key}"


def _table(timed: Timed, mib: int, goals: dict[str, float]) -> str:
    heads = ["side", "median time", "MiB/s", "ours takes (range)", "goal"]
    lines = [heads, ["---"] * len(heads)]
    for name, seconds in timed.seconds.items():
        middle = median(seconds)
        cells = [name, f"{middle:.2f} s", f"{mib / middle:,.0f}", "–", "–"]
        if name != timed.ours:
            ratios = [1 / ratio for ratio in timed.ratios(name)]
            cells[3] = f"**{median(ratios):.2f}x** ({min(ratios):.2f}–{max(ratios):.2f})"
        if name in goals:
            met = median(ratios) <= goals[name]
            cells[4] = f"{goals[name]:.1f}x, {'met' if met else 'missed'}"
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
