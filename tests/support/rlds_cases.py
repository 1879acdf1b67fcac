"""Small RLDS folders, each with one fault from the field, by the id of its case."""

import gzip
import io
import json

import numpy as np
from PIL import Image

from workloads.data import tf_example, tfrecord

STEPS = 12
random = np.random.default_rng(1)


def png(episode, step):
    pixels, buffer = np.zeros((48, 64, 3), np.uint8), io.BytesIO()
    pixels[..., 0], pixels[..., 1] = 40 * episode, 8 * step
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tensor(shape, dtype="float32"):
    dimensions = [str(size) for size in shape]
    return {"tensor": {"shape": {"dimensions": dimensions}, "dtype": dtype, "encoding": "none"}}


def nested(features):
    return {"featuresDict": {"features": features}}


IMAGE = {
    "image": {"shape": {"dimensions": ["48", "64", "3"]}, "dtype": "uint8", "encodingFormat": "png"}
}
TEXT = {"text": {}}
USUAL = {
    "observation": nested({"image": IMAGE, "state": tensor([7])}),
    "action": tensor([7]),
    "is_last": tensor([], "bool"),
    "language_instruction": TEXT,
}


def words(text, key="language_instruction"):
    return {f"steps/{key}": [text.encode()] * STEPS}


def episode(number, *more, without=()):
    found = {
        "steps/observation/image": [png(number, t) for t in range(STEPS)],
        "steps/observation/state": random.normal(size=7 * STEPS).astype("f4"),
        "steps/action": random.normal(size=7 * STEPS).astype("f4"),
        "steps/is_last": np.array([0] * (STEPS - 1) + [1]),
    }
    for feature in more:
        found |= feature
    return {key: value for key, value in found.items() if key not in without}


def write(root, steps, episodes, shards=1):
    """The folder of the version, with features.json, dataset_info.json and the shards."""
    folder = root / "1.0.0"
    folder.mkdir(parents=True)
    features = nested(
        {
            "steps": {"sequence": {"feature": nested(steps)}},
            "episode_metadata": nested({"file_path": TEXT}),
        }
    )
    (folder / "features.json").write_text(json.dumps(features))
    for shard in range(shards):
        records = [tf_example.build(episode) for episode in episodes[shard::shards]]
        tfrecord.write(folder / f"toy-train.tfrecord-{shard:05d}-of-{shards:05d}", records)
    lengths = [str(len(episodes[shard::shards])) for shard in range(shards)]
    facts = {"name": "toy", "splits": [{"name": "train", "shardLengths": lengths}]}
    (folder / "dataset_info.json").write_text(json.dumps(facts))
    return folder


def usual(count=4, text="open the drawer"):
    return [episode(number, words(text)) for number in range(count)]


def other_key(root):
    steps = {**USUAL, "task_description": TEXT}
    del steps["language_instruction"]
    text = words("stack the red block", "task_description")
    write(root, steps, [episode(number, text) for number in range(4)])


def missing_shard(root):
    folder = write(root, USUAL, usual(6), shards=3)
    (folder / "toy-train.tfrecord-00001-of-00003").unlink()


def array_record(root):
    folder = write(root, USUAL, usual(2))
    file = folder / "toy-train.tfrecord-00000-of-00001"
    file.rename(folder / "toy-train.array_record-00000-of-00001")


def gzipped(root):
    file = write(root, USUAL, usual()) / "toy-train.tfrecord-00000-of-00001"
    file.write_bytes(gzip.compress(file.read_bytes()))


def old_features(root):
    folder = write(root, USUAL, usual(2))
    kind = "tensorflow_datasets.core.features"
    inner = {"steps": {"type": f"{kind}.dataset_feature.Dataset"}}
    old = {"type": f"{kind}.features_dict.FeaturesDict", "content": json.dumps(inner)}
    (folder / "features.json").write_text(json.dumps(old))


def droid(root):
    seen = {
        "exterior_image_1_left": IMAGE,
        "wrist_image_left": IMAGE,
        "cartesian_position": tensor([6], "float64"),
        "gripper_position": tensor([1], "float64"),
        "joint_position": tensor([7], "float64"),
    }
    steps = {**USUAL, "observation": nested(seen), "language_instruction_2": TEXT}
    own = {
        "steps/observation/cartesian_position": random.normal(size=6 * STEPS).astype("f4"),
        "steps/observation/gripper_position": random.normal(size=STEPS).astype("f4"),
        "steps/observation/joint_position": random.normal(size=7 * STEPS).astype("f4"),
    }
    text = words("") | words("put the marker in the cup", "language_instruction_2")

    def one(number):
        frames = [png(number, t) for t in range(STEPS)]
        views = {
            f"steps/observation/{name}": frames
            for name in ("exterior_image_1_left", "wrist_image_left")
        }
        unused = ("steps/observation/image", "steps/observation/state")
        return episode(number, own, text, views, without=unused)

    write(root, steps, [one(number) for number in range(4)])


def no_state(root):
    steps = {**USUAL, "observation": nested({"image": IMAGE})}
    gone = ("steps/observation/state",)
    write(root, steps, [episode(n, words("open the drawer"), without=gone) for n in range(4)])


def two_texts(root):
    text = {"steps/language_instruction": [b"open the drawer"] * 6 + [b"take the cup"] * 6}
    write(root, USUAL, [episode(number, text) for number in range(4)])


def raw_pictures(root):
    seen = {"image": tensor([48, 64, 3], "uint8"), "state": tensor([7])}
    steps = {**USUAL, "observation": nested(seen)}
    # As tfds writes a uint8 tensor: a whole number for every value.
    raw = {"steps/observation/image": np.repeat(8 * np.arange(STEPS), 48 * 64 * 3)}
    write(root, steps, [episode(n, words("open the drawer"), raw) for n in range(4)])


def class_label(root):
    steps = {**USUAL, "action": {"classLabel": {"numClasses": "5"}}}
    act = {"steps/action": np.arange(STEPS) % 5}
    write(root, steps, [episode(n, words("open the drawer"), act) for n in range(4)])


CASES = {
    "V-B01": other_key,
    "V-B04": missing_shard,
    "V-B05": array_record,
    "V-B06": gzipped,
    "V-B07": old_features,
    "V-B08": lambda root: write(root, USUAL, usual(text="")),
    "V-B11": droid,
    "V-B12": no_state,
    "V-B14": two_texts,
    "V-E04": raw_pictures,
    "V-E06": class_label,
}
