"""Everything that has to be tried on a GPU, by one command that needs no network.

    bench/gpu/run.sh                     # on a GPU machine; `make gpu-bundle` was run elsewhere
    bench/gpu/run.sh --budget 540        # end within 540 seconds; the next call goes on with what
                                         # is left
    bench/gpu/run.sh --from nan          # run this part and those after it again
    bench/gpu/run.sh --earlier results.tar.gz   # go on with a call on a machine that is gone
    bench/gpu/run.sh --device cpu        # tiny shapes and stand-ins: that every part answers

What the machine lacks is installed from .gpu-bundle alone, into a folder beside its own packages,
which stay as they are. Each part is a process with a limit and writes one JSON file; one that dies
costs only itself, and what it had found by then is kept. After every part stand an archive of all
files and a summary as JSON and Markdown. `python -m bench.gpu.record FOLDER` brings them into the
documentation.

Exit code: 0 all parts have answered, 1 something failed, 2 it cannot begin or go on here, 3 parts
are left for another call.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu._install import Refused, installed
from bench.gpu._loopback import ensure_loopback
from bench.gpu._parts import NAMES, PARTS, Part
from bench.gpu._summary import summary, write_json, write_summary

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "gpu-run"
BUNDLE = ROOT / ".gpu-bundle"
DONE, FAILED, REFUSED, LEFT, STOPPED = 0, 1, 2, 3, 130
# Models of 1B and 8B with 19 GB, and a 1B's checkpoint with its optimizer and export with 18 GB.
ROOM = 40 * 10**9
# On a CPU no part has much to compute, and a loaded machine takes long for anything.
CPU_LIMIT, CPU_LEAST = 900, 5


@dataclass(frozen=True)
class Place:
    """Where a call writes: results of one device, which the next call finds again."""

    work: Path
    device: str

    @property
    def folder(self) -> Path:
        return self.work / self.device

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def running(self) -> Path:
        """The process of the part that runs; what a call that was killed leaves behind."""
        return self.folder / "running.json"

    def result(self, part: str) -> Path:
        return self.results / f"{part}.json"

    def log(self, part: str) -> Path:
        return self.results / f"{part}.log"

    def limits(self, part: Part) -> tuple[float, float]:
        """Seconds that a part may take, and those without which it is not begun."""
        return (part.limit, part.least) if self.device == "cuda" else (CPU_LIMIT, CPU_LEAST)


def main(words: Sequence[str] | None = None) -> int:
    """Install, run what is left, write the archive and the summary."""
    options = _options(words)
    place = Place(options.work, options.device)
    try:
        return _run(options, place)
    except Refused as reason:
        print(reason, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return STOPPED
    except OSError as error:
        print(
            f"expected to write and read below {place.folder} and {options.output}, found: "
            f"{error}; results so far stay, and the next call goes on",
            file=sys.stderr,
        )
        return REFUSED


def _run(options: argparse.Namespace, place: Place) -> int:
    end = time.monotonic() + options.budget
    place.results.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        write_summary(summary(place.results, options.device), options.output)
        new = options.output / ".results.tar.gz"
        with tarfile.open(new, "w:gz") as archive:
            archive.add(place.results, arcname="results")
        new.replace(options.output / "results.tar.gz")

    with _alone(place):
        if not ensure_loopback():
            raise Refused(
                "expected 127.0.0.1 to answer, found the loopback interface down; as root: "
                "ip link set lo up"
            )
        env = environment(options.device, options.work)
        card = _card(env, options.device)
        if options.earlier:
            _take_over(options.earlier, place)
        _check_cards(place, card)
        room = shutil.disk_usage(place.folder).free
        if card and room < ROOM:
            print(
                f"expected {ROOM / 1e9:.0f} GB of room in {place.folder}, found "
                f"{room / 1e9:.0f}; parts that write models may fail"
            )
        wanted = [part for part in PARTS if part.name in options.parts]
        if options.again_from:
            for part in wanted:
                if NAMES.index(part.name) >= NAMES.index(options.again_from):
                    place.result(part.name).unlink(missing_ok=True)
        is_stopped = False
        try:
            left = run_parts(wanted, place, env, end, write)
        except KeyboardInterrupt:
            left, is_stopped = [part.name for part in wanted if not _is_done(part, place)], True
        write()
    print(f"{options.output}/summary.md, summary.json, results.tar.gz")
    if left:
        print(f"left for another call: {', '.join(left)}")
        return STOPPED if is_stopped else LEFT
    parts = summary(place.results, options.device)["parts"]
    if failed := [name for name, result in parts.items() if result["status"] == "failed"]:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return FAILED if failed else DONE


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/gpu/run.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=NAMES, default=NAMES, metavar="PART")
    parser.add_argument(
        "--from", dest="again_from", choices=NAMES, metavar="PART",
        help=f"run it and all after it again: {', '.join(NAMES)}",
    )  # fmt: skip
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument(
        "--earlier", type=Path, metavar="ARCHIVE",
        help="results.tar.gz of an earlier call: what has answered there is not run again",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=ROOT / "outputs" / "gpu-run", metavar="FOLDER"
    )
    parser.add_argument("--work", type=Path, default=WORK, help=argparse.SUPPRESS)
    return parser.parse_args(words)


@contextlib.contextmanager
def _alone(place: Place) -> Iterator[None]:
    """One call at a time; a part that a killed call has left running is ended first."""
    with (place.folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(
                f"expected one call at a time, found another at work in {place.folder}; wait for "
                "it, or stop it"
            ) from error
        _end_left_over(place.running)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def environment(device: str, work: Path) -> dict[str, str]:
    """The environment of the parts: the bundle's packages before the machine's, and no network.

    Raises Refused for a bundle that cannot be installed.
    """
    site = installed(BUNDLE, work)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= {"TATARA_CACHE": str(work / "cache"), "TATARA_RUNTIME": "local", "WANDB_MODE": "offline"}
    own = [str(path) for path in (ROOT, site) if path]
    env["PYTHONPATH"] = os.pathsep.join([*own, *filter(None, [env.get("PYTHONPATH")])])
    env.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_TORCH_DEVICE": "cpu"}
        env |= {"OMP_NUM_THREADS": "1"}
    else:
        # On several GPUs the Trainer would split batches among them.
        env["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return env


def _card(env: Mapping[str, str], device: str) -> str | None:
    """Say what this Python has and lacks; the name of the GPU, None on a CPU.

    Raises Refused, after its reason was printed, where no part can run.
    """
    code = "import bench.gpu._machine as machine; machine.report()"
    command = [sys.executable, "-c", code, device]
    done = subprocess.run(command, env=dict(env), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise Refused(f"{sys.executable} cannot run the parts")
    facts = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    card: str | None = json.loads(facts)["card"]
    return card


def _take_over(archive: Path, place: Place) -> None:
    """Unpack results of an earlier call; those that are here stay."""
    try:
        with tarfile.open(archive) as found:
            for member in found.getmembers():
                file = place.results / Path(member.name).name
                is_result = file.stem in NAMES and file.suffix in (".json", ".log")
                content = found.extractfile(member) if is_result else None
                if content is not None and not file.exists():
                    file.write_bytes(content.read())
    except (OSError, tarfile.TarError) as error:
        raise Refused(
            f"--earlier: expected the results.tar.gz of an earlier call, found {archive}: {error}"
        ) from error


def _check_cards(place: Place, card: str | None) -> None:
    """Figures of two cards do not stand in one summary."""
    for part in PARTS:
        machine = _read(place.result(part.name)).get("machine")
        if machine and machine["card"] != card:
            raise Refused(
                f"expected results of {card or 'a CPU'} in {place.results}, found some of "
                f"{machine['card'] or 'a CPU'}; keep its summary and remove the folder"
            )


def run_parts(
    wanted: Sequence[Part],
    place: Place,
    env: Mapping[str, str],
    end: float,
    write: Callable[[], None] = lambda: None,
) -> list[str]:
    """Run the parts that have no result yet; the names of those there was no time for.

    end: seconds of the monotonic clock after which nothing may run any more; a part that it ends is
    left for the next call, unless it had this one for itself. write: called after each part. Raises
    Refused where the time is too short for any of them.
    """
    left: list[str] = []
    has_begun = False
    for part in wanted:
        if _is_done(part, place):
            continue
        most, least = place.limits(part)
        limit = min(most, end - time.monotonic())
        if limit < least:
            left.append(part.name)
            continue
        print(f"{part.name:<14}{part.title} …", flush=True)
        result = run_part(part, place, env, limit)
        if has_begun and limit < most and result.get("is_cut"):
            place.result(part.name).unlink()
            left.append(part.name)
            print(f"{'':<14}ended by the budget; the next call runs it", flush=True)
        else:
            print(
                f"{'':<14}{result['status']}, {result['seconds']:.0f} s{_why(result)}", flush=True
            )
        has_begun = True
        write()
    if left and not has_begun:
        needed = min(place.limits(part)[1] for part in wanted if part.name in left)
        raise Refused(
            f"--budget: expected at least {needed:.0f} seconds for a part, found "
            f"{max(0.0, end - time.monotonic()):.0f} left for {', '.join(left)}; give more"
        )
    return left


def _is_done(part: Part, place: Place) -> bool:
    return place.result(part.name).is_file()


def run_part(part: Part, place: Place, env: Mapping[str, str], limit: float) -> dict[str, Any]:
    """One part in a process group of its own; its result file is there in the end, always."""
    begun = time.monotonic()
    own = place.result(part.name).with_suffix(".unfinished")
    own.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu.part", part.name, "--device", place.device]
    command += ["--result", str(own), "--work", str(place.folder)]
    problem, is_cut = "", False
    with place.log(part.name).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(env), stdout=log, stderr=log, process_group=0
        )
        try:
            write_json(place.running, {"pid": process.pid, "born": _born(process.pid)})
            code = process.wait(limit)
            if _read(own).get("status") in (None, "unfinished"):
                problem = f"its process {_ended(code)} before its result was whole"
        except subprocess.TimeoutExpired:
            problem, is_cut = f"did not end within {limit:.0f} seconds", True
        finally:
            _end_group(process.pid)
            process.wait()
            place.running.unlink(missing_ok=True)
    result = {"checks": [], "figures": {}, "memory": [], "notes": [], **_read(own)}
    if problem:
        last = place.log(part.name).read_text(encoding="utf-8", errors="replace")[-2000:]
        result |= {"status": "failed", "error": problem, "log": last, "is_cut": is_cut}
    seconds = round(time.monotonic() - begun, 1)
    result |= {"part": part.name, "title": part.title, "seconds": seconds}
    write_json(place.result(part.name), result)
    own.unlink(missing_ok=True)
    return result


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does where host memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory},"


def _born(pid: int) -> str:
    """When a process started: this start of the machine, and ticks since it; empty without it."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        ticks = ""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {ticks}"


def _end_left_over(note: Path) -> None:
    """End a part whose call was killed, and wait until the GPU is free.

    Its group keeps its number as long as any process of it lives, also without its first.
    """
    found = _read(note)
    note.unlink(missing_ok=True)
    if not found or _born(found["pid"]) not in (found["born"], f"{found['born'].split()[0]} "):
        return
    _end_group(found["pid"])
    end = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(found["pid"], 0)
            time.sleep(0.05)


def _end_group(leader: int) -> None:
    """End a part and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _read(path: Path) -> dict[str, Any]:
    """A part's result; empty where there is none, or half of one."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _why(result: Mapping[str, Any]) -> str:
    if result["status"] == "passed":
        return f", {len(result['checks'])} checks"
    bad = [check["name"] for check in result["checks"] if not check["passed"]]
    return f": {result.get('error') or result.get('reason') or '; '.join(bad)}"


if __name__ == "__main__":
    sys.exit(main())
