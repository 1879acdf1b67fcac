"""Small CRANE-X7 folders, each with one fault from the field, by the id of its case."""

import gzip
import io

import numpy as np
from PIL import Image

from workloads.data import tf_example, tfrecord
from workloads.data.robot.crane_x7.writer import write_episode

STEPS = 14
random = np.random.default_rng(1)


def jpeg(step):
    buffer = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), 8 * step, np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def usual(step, states):
    return {
        "observation/state": states[step],
        "observation/image": jpeg(step),
        "action": states[min(step + 1, STEPS - 1)],
        "prompt": "pick the cube",
    }


def serialised(step, states):
    """The vectors as tf.io.serialize_tensor writes them: bytes of a TensorProto."""
    one = usual(step, states)
    for key in ("observation/state", "action"):
        shape, body = b"\x12\x02\x08\x08", one[key].astype("<f4").tobytes()
        one[key] = (
            b"\x08\x01\x12" + bytes([len(shape)]) + shape + b"\x22" + bytes([len(body)]) + body
        )
    return one


def raw(step, states):
    size = {"observation/image/height": np.array([48]), "observation/image/width": np.array([64])}
    return usual(step, states) | size | {"observation/image": bytes(48 * 64 * 3)}


def degrees(step, states):
    return usual(step, np.rad2deg(states + 1).astype("f4"))


def write(root, step_of=usual, name="episode_data.tfrecord"):
    for episode in range(3):
        folder = root / f"episode_{episode:04d}"
        folder.mkdir(parents=True)
        states = random.normal(size=(STEPS, 8)).astype("f4") * np.float32(0.05)
        tfrecord.write(folder / name, [tf_example.build(step_of(t, states)) for t in range(STEPS)])


def zipped(root):
    write(root)
    for file in root.rglob("*.tfrecord"):
        file.write_bytes(gzip.compress(file.read_bytes()))


def large(root, episodes=13, steps=60):
    """640x480 JPEG with the colours in order, as the project's own writer leaves them."""
    y, x = np.mgrid[:480, :640]
    base = np.stack([x / 2.5, y / 1.9, (x + y) / 4.4], -1).astype(np.uint8)
    for episode in range(episodes):
        states = random.normal(size=(steps, 8)).cumsum(0).astype("f4") * np.float32(0.01)
        frames = []
        for t in range(steps):
            frame = base.copy()
            frame[100:160, 5 * t % 560 : 5 * t % 560 + 60] = (255, 40, 40)
            frames.append(frame)
        write_episode(root / f"episode_{episode:04d}", states, {"primary": frames}, "pick the cube")


CASES = {
    "V-D01": large,
    "V-F02": lambda root: write(root, serialised),
    "V-F03": lambda root: write(root, raw),
    "V-F06": lambda root: write(root, name="episode_data.tfrecords"),
    "V-F07": zipped,
    "V-F08": lambda root: write(root, degrees),
}
