"""Everything that has to be tried on a GPU, by one command that needs no network.

    bench/gpu/run.sh                     # on a GPU machine; `make gpu-bundle` was run elsewhere
    bench/gpu/run.sh --list              # the parts, and what each is expected to take
    bench/gpu/run.sh --budget 540        # end within 540 seconds: only what is expected to fit is
                                         # begun, and the next call goes on with what is left
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
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu._install import Refused, installed
from bench.gpu._loopback import ensure_loopback
from bench.gpu._parts import NAMES, PARTS, Part, listing
from bench.gpu._process import ROOT, Place, end_left_over, run_part
from bench.gpu._summary import read_json, summary, write_summary

WORK = ROOT / ".cache" / "gpu-run"
BUNDLE = ROOT / ".gpu-bundle"
DONE, FAILED, REFUSED, LEFT, STOPPED = 0, 1, 2, 3, 130
# Two models with 8 GB, and a 1B's checkpoint with its optimizer and export with 18 GB.
ROOM = 30 * 10**9
# Caches that libraries would write below HOME, which may be read-only, or into /tmp. HF_HOME stays:
# a lab's own may hold kernels.
WRITTEN = ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR",
           "TRITON_CACHE_DIR")  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Install, run what is left, write the archive and the summary."""
    options = _options(words)
    if options.list:
        print(listing(tuple(part for part in PARTS if part.name in options.parts)))
        return DONE
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
        if card:
            seconds = [part.expected for part in wanted if not _is_done(part, place)]
            print(f"{len(seconds)} parts, about {sum(seconds) / 60:.0f} minutes on an H100")
        is_stopped = False
        try:
            left = run_parts(wanted, place, env, end, write)
        except Refused:
            write()
            raise
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
    parser.add_argument(
        "--list", action="store_true", help="what each part is expected to take, and begin none"
    )
    parser.add_argument("--budget", type=_seconds, default=math.inf, metavar="SECONDS")
    parser.add_argument(
        "--earlier", type=Path, metavar="ARCHIVE",
        help="results.tar.gz of an earlier call: what has answered there is not run again",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=ROOT / "outputs" / "gpu-run", metavar="FOLDER"
    )
    parser.add_argument(
        "--work", type=Path, default=WORK, metavar="FOLDER",
        help="where models, caches and results are written, %(default)s unless given",
    )  # fmt: skip
    return parser.parse_args(words)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, found {text}")
    return seconds


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
        except OSError as error:  # some network disks know no locks
            print(f"no lock in {place.folder} ({error.strerror}): let no other call work there")
        end_left_over(place.running)
        shutil.rmtree(place.runs, ignore_errors=True)
        # A terminal that is closed is a stop too, unless nohup has said otherwise.
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        stops = [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]
        before = {stop: signal.signal(stop, signal.default_int_handler) for stop in stops}
        try:
            yield
        finally:
            for stop, handler in before.items():
                signal.signal(stop, handler)


def environment(device: str, work: Path) -> dict[str, str]:
    """The environment of the parts: the bundle's packages before the machine's, and no network.

    Raises Refused for a bundle that cannot be installed.
    """
    site = installed(BUNDLE, work)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= {"TATARA_CACHE": str(work / "cache"), "TATARA_RUNTIME": "local", "WANDB_MODE": "offline"}
    own = [str(path) for path in (ROOT, site) if path]
    env["PYTHONPATH"] = os.pathsep.join([*own, *filter(None, [env.get("PYTHONPATH")])])
    # Every part would compile the bundle's packages again, which takes as long as all else it does.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    for name in WRITTEN:
        env.setdefault(name, str(work / "cache" / name.lower()))
    if tempfile.gettempdir() == os.getcwd():  # no usual place for temporary files can be written
        (work / "tmp").mkdir(parents=True, exist_ok=True)
        env["TMPDIR"] = str(work / "tmp")
    if "PYTORCH_CUDA_ALLOC_CONF" not in env:  # torch's older name for the same
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
    """Unpack results of an earlier call; those that are here stay.

    An archive that was cut gives what is whole in it. Raises Refused where that is nothing.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as members:
            for member in members:
                name = Path(member.name)
                is_result = name.stem in NAMES and name.suffix in (".json", ".log")
                if is_result and (content := members.extractfile(member)) is not None:
                    found[name.name] = content.read()
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        if not found:
            raise Refused(
                f"--earlier: expected the results.tar.gz of an earlier call, found {archive}: "
                f"{error}"
            ) from error
        print(f"{archive} is cut ({error}): what is whole in it is taken")
    for file, text in found.items():
        if not (place.results / file).exists() and (file.endswith(".log") or _is_whole(text)):
            (place.results / file).write_bytes(text)


def _is_whole(text: bytes) -> bool:
    try:
        return "status" in json.loads(text)
    except ValueError:
        return False


def _check_cards(place: Place, card: str | None) -> None:
    """Figures of two cards do not stand in one summary."""
    for part in PARTS:
        machine = read_json(place.result(part.name)).get("machine")
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
    """Whether it has answered; half a result, as of a disk that was full, is none."""
    return "status" in read_json(place.result(part.name))


def _why(result: Mapping[str, Any]) -> str:
    if result["status"] == "passed":
        return f", {len(result['checks'])} checks"
    bad = [check["name"] for check in result["checks"] if not check["passed"]]
    return f": {result.get('error') or result.get('reason') or '; '.join(bad)}"


if __name__ == "__main__":
    sys.exit(main())
