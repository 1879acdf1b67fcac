"""Everything that has to be tried on a GPU, by one command that needs no network.

    bench/gpu/run.sh                     # on a GPU machine; `make gpu-bundle` was run elsewhere
    bench/gpu/run.sh --budget 540        # begin nothing that does not end within 540 seconds; the
                                         # next call goes on with what is left
    bench/gpu/run.sh --from nan          # run this part and those after it again
    bench/gpu/run.sh --device cpu        # tiny shapes and stand-ins: that every part answers

What the machine lacks is installed from .gpu-bundle alone, into a folder beside its own packages,
which stay as they are. Each part is a process with a limit and writes one JSON file; one that dies
costs only itself. At the end, and after a budget, stand an archive of all files and a summary as
JSON and Markdown. `python -m bench.gpu.record FOLDER` brings them into the documentation.

Exit code: 0 all parts have answered, 1 something failed, 3 parts are left for another call.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu._loopback import ensure_loopback
from bench.gpu._parts import NAMES, PARTS, Part
from bench.gpu._summary import summary, write_summary

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "gpu-run"
BUNDLE = ROOT / ".gpu-bundle"
DONE, FAILED, LEFT = 0, 1, 3
# On a CPU no part has much to compute, and a loaded machine takes long for anything.
CPU_LIMIT = 900


@dataclass(frozen=True)
class Place:
    """Where a call writes: results of one device, which the next call finds again."""

    work: Path
    device: str

    @property
    def results(self) -> Path:
        return self.work / self.device / "results"

    def result(self, part: str) -> Path:
        return self.results / f"{part}.json"

    def log(self, part: str) -> Path:
        return self.results / f"{part}.log"


def main(words: Sequence[str] | None = None) -> int:
    """Install, run what is left, write the archive and the summary."""
    options = _options(words)
    begun = time.monotonic()
    place = Place(options.work, options.device)
    place.results.mkdir(parents=True, exist_ok=True)
    env = environment(options.device, options.work)
    if not ensure_loopback():
        print(
            "expected 127.0.0.1 to answer, found the loopback interface down; as root: "
            "ip link set lo up",
            file=sys.stderr,
        )
        return 2
    if not _has_what_is_needed(env, options.device):
        return 2
    wanted = [part for part in PARTS if part.name in options.parts]
    if options.again_from:
        for part in PARTS[NAMES.index(options.again_from) :]:
            place.result(part.name).unlink(missing_ok=True)
    left = run_parts(wanted, place, env, begun + options.budget)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    found = summary(place.results, options.device)
    write_summary(found, out)
    with tarfile.open(out / "results.tar.gz", "w:gz") as archive:
        archive.add(place.results, arcname="results")
    print(f"{out}/summary.md, summary.json, results.tar.gz")
    if left:
        print(f"left for another call: {', '.join(left)}")
        return LEFT
    failed = [name for name, result in found["parts"].items() if result["status"] == "failed"]
    if failed:
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
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "gpu-run", metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=WORK, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def environment(device: str, work: Path) -> dict[str, str]:
    """The environment of the parts: the bundle's packages before the machine's, and no network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= {"TATARA_CACHE": str(work / "cache"), "TATARA_RUNTIME": "local", "WANDB_MODE": "offline"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *_installed(work)])
    env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_TORCH_DEVICE": "cpu"}
        env |= {"OMP_NUM_THREADS": "1"}
    return env


def _installed(work: Path) -> list[str]:
    """The folder of the bundle's packages, installed once a bundle; none where there is none."""
    facts = BUNDLE / "bundle.json"
    if not facts.is_file():
        print(f"no {BUNDLE.name}: this Python's own packages are taken")
        return []
    bundle = json.loads(facts.read_text(encoding="utf-8"))
    here = ".".join(platform.python_version_tuple()[:2])
    if bundle["python"] != here:
        print(
            f"{BUNDLE.name} is for Python {bundle['python']}, this is {here}: its packages are "
            f"left out; make gpu-bundle PYTHON={here}"
        )
        return []
    site = work / f"site-{here}"
    if not (site / "bundle.json").is_file() or (site / "bundle.json").read_text() != json.dumps(
        bundle
    ):
        print(f"installing {len(bundle['wheels'])} packages from {BUNDLE.name}", flush=True)
        wheels = [str(BUNDLE / "wheels" / name) for name in bundle["wheels"]]
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--upgrade"]
        subprocess.run([*command, "--target", str(site), *wheels], check=True)
        (site / "bundle.json").write_text(json.dumps(bundle))
    return [str(site)]


def _has_what_is_needed(env: Mapping[str, str], device: str) -> bool:
    """Say what this Python lacks, and whether torch sees the GPU that is asked for."""
    code = "import bench.gpu._machine as machine; machine.report()"
    command = [sys.executable, "-c", code, device]
    return subprocess.run(command, env=dict(env), cwd=ROOT).returncode == 0


def run_parts(
    wanted: Sequence[Part], place: Place, env: Mapping[str, str], end: float
) -> list[str]:
    """Run the parts that have no result yet; the names of those there was no time for.

    end: seconds of the monotonic clock after which nothing may run any more.
    """
    left = []
    for part in wanted:
        if place.result(part.name).is_file():
            continue
        limit = min(part.limit if place.device == "cuda" else CPU_LIMIT, end - time.monotonic())
        if limit < (part.least if place.device == "cuda" else 5):
            left.append(part.name)
            continue
        print(f"{part.name:<14}{part.title} …", flush=True)
        result = run_part(part, place, env, limit)
        print(f"{'':<14}{result['status']}, {result['seconds']:.0f} s{_why(result)}", flush=True)
    return left


def run_part(part: Part, place: Place, env: Mapping[str, str], limit: float) -> dict[str, Any]:
    """One part in a process group of its own; its result file is there in the end, always."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "bench.gpu.part", part.name, "--device", place.device]
    command += ["--result", str(place.result(part.name)), "--work", str(place.work / place.device)]
    with place.log(part.name).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(env), stdout=log, stderr=log, start_new_session=True
        )
        problem = ""
        try:
            code = process.wait(limit)
            if not place.result(part.name).is_file():
                problem = f"its process ended with {code} and no result"
        except subprocess.TimeoutExpired:
            problem = f"did not end within {limit:.0f} seconds"
        finally:
            _end_group(process)
    seconds = time.monotonic() - begun
    result = _read(place.result(part.name))
    if problem:
        last = place.log(part.name).read_text(encoding="utf-8", errors="replace")[-2000:]
        result = {"status": "failed", "error": problem, "log": last, "checks": [], **result}
        result["status"] = "failed"
    result |= {"part": part.name, "title": part.title, "seconds": round(seconds, 1)}
    place.result(part.name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a part and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
