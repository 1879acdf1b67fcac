"""CALVIN's simulator behind messages: `python simulator.py --calvin FOLDER`.

This file is self-contained, with numpy and calvin_env's packages: it runs in its own environment or
image, since calvin_env requires older packages than a training. `tatara eval calvin` starts it and
sends messages over its standard input and output, or a connection:

    hello                            → version, renderer, commit, scene
    reset robot_obs[15] scene_obs[24] → rgb_static, rgb_gripper, robot_obs, scene_obs
    task name → the same; the current scene is the task's start
    step action[7]                   → the same, and solved: whether the task is done

A message is a length of 4 bytes, JSON of that length with the arrays' names, types and shapes, and
the arrays' bytes. A request that cannot be done is answered with `error`. Nothing is unpickled.
"""

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

VERSION = 1
SCENE = "calvin_scene_D_eval"
IMAGES = {"rgb_static": (200, 200, 3), "rgb_gripper": (84, 84, 3)}
STATES = {"robot_obs": (15,), "scene_obs": (24,)}
ACTION = 7
_LENGTH = struct.Struct(">I")
_MOST_HEADER, _MOST_BYTES = 1 << 16, 1 << 24
_TYPES = ("|u1", "<f4", "<f8")
_MOST_SIMULATORS = 64


def write_message(stream, fields, arrays=()):
    """Send `fields` as JSON with arrays by name."""
    arrays = {name: np.ascontiguousarray(array) for name, array in dict(arrays).items()}
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    header = json.dumps({**fields, "arrays": shapes}).encode()
    stream.write(_LENGTH.pack(len(header)) + header)
    for array in arrays.values():
        stream.write(array.tobytes())
    stream.flush()


def read_message(stream):
    """The next message's fields and arrays; EOFError at the end, ValueError for anything else."""
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if length > _MOST_HEADER:
        raise ValueError("expected a message of the simulator, found something else")
    fields = json.loads(_exactly(stream, length))
    shapes = fields.pop("arrays", {}) if isinstance(fields, dict) else None
    if not isinstance(shapes, dict):
        raise ValueError("expected a message with named arrays, found something else")
    arrays = {}
    for name, (kind, shape) in shapes.items():
        if kind not in _TYPES or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError(f"{name}: expected an array of numbers, found {kind} {shape}")
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        if size > _MOST_BYTES:
            raise ValueError(f"{name}: expected at most {_MOST_BYTES} bytes, found {size}")
        arrays[name] = np.frombuffer(_exactly(stream, size), kind).reshape(shape)
    return fields, arrays


def _exactly(stream, size):
    found = b""
    while len(found) < size:
        piece = stream.read(size - len(found))
        if not piece:
            raise EOFError("the other side has ended")
        found += piece
    return found


def commit_of(path):
    """The commit of the clone, or of the archive, that a path is in; None if unknown."""
    for folder in (path, *path.parents):
        if (folder / "COMMIT").is_file():
            return (folder / "COMMIT").read_text().strip()
        git = folder / ".git"
        if git.is_file():  # of a submodule
            git = folder / git.read_text().split(": ", 1)[1].strip()
        if (git / "HEAD").is_file():
            head = (git / "HEAD").read_text().strip()
            if not head.startswith("ref: "):
                return head
            packed = git / "packed-refs"
            lines = packed.read_text().split("\n") if packed.is_file() else []
            names = {name: commit for commit, _, name in (line.partition(" ") for line in lines)}
            name = head[len("ref: ") :]
            return (git / name).read_text().strip() if (git / name).is_file() else names.get(name)
    return None


class CalvinEnvironment:
    """calvin_env with its oracle; images by EGL where `egl` is set, else by TinyRenderer."""

    def __init__(self, folder, egl):
        if folder is not None:
            is_clone = (folder / "conf").is_dir()
            sys.path.insert(0, str(folder if is_clone else folder / "calvin_env"))
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # gitpython, where there is no git
        try:
            import calvin_env
        except ImportError as error:
            raise SystemExit(
                f"expected calvin_env, found none ({error}); name its clone with --calvin"
            ) from None
        import hydra
        from calvin_env.envs import play_table_env
        from omegaconf import OmegaConf

        # It requires a git repository, only to log its commit.
        play_table_env.get_git_commit_hash = commit_of

        self.root = Path(calvin_env.__file__).resolve().parents[1]
        self.renderer = "EGL" if egl else "TinyRenderer"
        with hydra.initialize_config_dir(config_dir=str(self.root / "conf")):
            config = hydra.compose(
                "config_data_collection",
                overrides=[
                    "cameras=static_and_gripper",
                    f"scene={SCENE}",
                    "use_vr=false",
                    f"env.use_egl={str(egl).lower()}",
                    f"data_path={self.root / 'data'}",
                ],
            )
        self.oracle = hydra.utils.instantiate(
            OmegaConf.load(self.root / "conf/tasks/new_playtable_tasks.yaml")
        )
        self.env = hydra.utils.instantiate(
            config.env, show_gui=False, use_vr=False, use_scene_info=True
        )
        self.start = self.task = None

    def hello(self, fields, arrays):
        import pybullet

        return {
            "version": VERSION,
            "renderer": self.renderer,
            "scene": SCENE,
            "calvin_env": commit_of(self.root),
            "pybullet": pybullet.getAPIVersion(),
        }, {}

    def reset(self, fields, arrays):
        self.task = None
        given = {name: self._vector(arrays, name, size) for name, (size,) in STATES.items()}
        # Built again in a quarter of a second: nothing of the sequence before is left, in any order
        # of sequences.
        self.env.load()
        return {}, self._seen(self.env.reset(**given))

    def begin(self, fields, arrays):
        task = fields.get("name")
        if task not in self.oracle.tasks:
            raise ValueError(f"expected a task of CALVIN, found {task!r}")
        self.start, self.task = self.env.get_info(), task
        return {}, self._seen(self.env.get_obs())

    def step(self, fields, arrays):
        if self.task is None:
            raise ValueError("expected a task before a step")
        action = self._vector(arrays, "action", ACTION)
        if action[-1] not in (-1.0, 1.0):
            raise ValueError(f"expected a gripper of -1 or 1, found {action[-1]}")
        seen, _, _, info = self.env.step(action)
        done = self.oracle.get_task_info_for_set(self.start, info, {self.task})
        return {"solved": bool(done)}, self._seen(seen)

    @staticmethod
    def _vector(arrays, name, size):
        found = arrays.get(name)
        if found is None or found.shape != (size,) or not np.isfinite(found).all():
            raise ValueError(f"expected {name} of {size} finite numbers")
        return found.astype(np.float64)

    @staticmethod
    def _seen(found):
        images = {name: found["rgb_obs"][name].astype(np.uint8) for name in IMAGES}
        states = {name: np.asarray(found[name], np.float64) for name in STATES}
        return {**images, **states}


def answer(new_simulator, inward, outward):
    """Do what is asked until the other side ends.

    The simulator is made for the first message: a look whether anybody listens costs none.
    """
    verbs: dict = {}
    while True:
        try:
            fields, arrays = read_message(inward)
        except EOFError:
            return
        if not verbs:
            simulator = new_simulator()
            verbs = {
                "hello": simulator.hello,
                "reset": simulator.reset,
                "task": simulator.begin,
                "step": simulator.step,
            }
        try:
            verb = verbs.get(fields.get("do"))
            if verb is None:
                raise ValueError(f"expected {', '.join(verbs)}, found {fields.get('do')!r}")
            write_message(outward, *verb(fields, arrays))
        except (ValueError, AssertionError) as error:
            write_message(outward, {"error": str(error) or type(error).__name__})


def own_output():
    """Stream of messages; prints of libraries, also from C, go to standard error from here on."""
    outward = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return outward


def listen(address, words):
    """Start a process for each connection, as inetd does; `words`: its command."""
    host, _, port = address.rpartition(":")
    running: list[subprocess.Popen[bytes]] = []
    with socket.create_server((host, int(port))) as server:
        print(f"simulators at {host}:{server.getsockname()[1]}", flush=True)
        while True:
            connection, _ = server.accept()
            running = [process for process in running if process.poll() is None]
            with connection:
                if len(running) < _MOST_SIMULATORS:
                    running.append(
                        subprocess.Popen(
                            words, stdin=connection.fileno(), stdout=connection.fileno()
                        )
                    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--calvin",
        type=Path,
        metavar="FOLDER",
        help="clone of calvin_env, or the folder that has it, where it is not installed",
    )
    parser.add_argument("--egl", action="store_true", help="render with the GPU")
    parser.add_argument("--listen", metavar="HOST:PORT", help="serve connections")
    args = parser.parse_args()
    if args.listen:
        own = [sys.executable, os.path.abspath(__file__), *(["--egl"] if args.egl else [])]
        listen(args.listen, own + (["--calvin", str(args.calvin)] if args.calvin else []))
    outward = own_output()
    folder = args.calvin and args.calvin.resolve()
    answer(lambda: CalvinEnvironment(folder, args.egl), sys.stdin.buffer, outward)


if __name__ == "__main__":
    main()
