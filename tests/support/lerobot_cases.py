"""Small LeRobot datasets, each with one fault from the field, by the id of its case.

An image tells its step and episode: green is 8 * step, red is 40 * episode (`marks` reads them).
"""

import io
import json

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
TOP = {"observation.images.top": "image"}
TOP_VIDEO = {"observation.images.top": "video"}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 123456\n"
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
random = np.random.default_rng(0)


def pixels(episode, step):
    out = np.zeros((48, 64, 3), np.uint8)
    out[..., 0], out[..., 1] = 40 * episode % 256, 8 * step % 256
    out[:8, :8] = 255
    return out


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def video(file, frames):
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def marks(image):
    """(step, episode) written into an image."""
    middle = np.median(image[-10:, 20:].reshape(-1, 3).astype(int), axis=0)
    return round(middle[1] / 8), round(middle[0] / 40)


def walk(steps, size):
    return random.normal(size=(steps, size)).astype("f4").cumsum(0) * np.float32(0.1)


def table(
    episode,
    steps,
    start=0,
    cameras=(),
    state=None,
    action=None,
    times=None,
    tasks=None,
    cell=None,
    state_key="observation.state",
):
    state = walk(steps, 6) if state is None else state
    action = np.concatenate([state[1:], state[-1:]]) if action is None else action
    times = np.arange(steps) / FPS if times is None else times
    columns = {
        state_key: pa.array(state.tolist(), pa.list_(pa.float32())),
        "action": pa.array(action.tolist(), pa.list_(pa.float32())),
        "timestamp": pa.array(np.asarray(times, "f4")),
        "frame_index": pa.array(np.arange(steps)),
        "episode_index": pa.array(np.full(steps, episode)),
        "index": pa.array(np.arange(steps) + start),
        "task_index": pa.array(np.zeros(steps, int) if tasks is None else tasks),
    }

    def usual(camera, t):
        return {"bytes": png(pixels(episode, t)), "path": f"frame_{t:06d}.png"}

    for camera in cameras:
        cells = [(cell or usual)(camera, t) for t in range(steps)]
        columns[camera] = pa.array(cells, CELL)
    return pa.table({name: column for name, column in columns.items() if name})


def info(version, cameras, episodes, frames, state=6, action=6, **other):
    names = [f"joint_{number}.pos" for number in range(5)] + ["gripper.pos"]

    def named(size):
        return names if size == 6 else [f"x{number}" for number in range(size)]

    features = {
        "observation.state": {"dtype": "float32", "shape": [state], "names": named(state)},
        "action": {"dtype": "float32", "shape": [action], "names": named(action)},
    }
    for key, dtype in cameras.items():
        axes = ["height", "width", "channels"]
        features[key] = {"dtype": dtype, "shape": [48, 64, 3], "names": axes}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        dtype = "float32" if key == "timestamp" else "int64"
        features[key] = {"dtype": dtype, "shape": [1], "names": None}
    place = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    if version.startswith("v2"):
        place = "chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
    videos = "videos/{video_key}/" + place + ".mp4"
    if version.startswith("v2"):
        videos = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    return {
        "codebase_version": version,
        "robot_type": "so100",
        "fps": FPS,
        "chunks_size": 1000,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": 1,
        "splits": {"train": f"0:{episodes}"},
        "features": features,
        "data_path": f"data/{place}.parquet",
        "video_path": videos,
        **other,
    }


def put(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(value, list)
    text = (
        "".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value, indent=1)
    )
    file.write_text(text)


def v2(
    root,
    lengths,
    cameras=TOP,
    tasks=("pick the cube",),
    missing=(),
    each=None,
    said=None,
    shown=None,
    **facts,
):
    """each(episode) → arguments of `table`; said: lengths in the meta data; shown: video frames."""
    start = 0
    for episode, steps in enumerate(lengths):
        file = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        pictures = [key for key, dtype in cameras.items() if dtype == "image"]
        if episode not in missing:
            file.parent.mkdir(parents=True, exist_ok=True)
            more = each(episode) if each else {}
            pq.write_table(table(episode, steps, start, pictures, **more), file)
        for key in (key for key, dtype in cameras.items() if dtype == "video"):
            frames = [pixels(episode, t) for t in range(shown or steps)]
            video(root / f"videos/chunk-000/{key}/episode_{episode:06d}.mp4", frames)
        start += steps
    put(root / "meta/info.json", info("v2.1", cameras, len(lengths), start, **facts))
    put(root / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(tasks)])
    rows = [
        {"episode_index": e, "tasks": [tasks[0]], "length": n}
        for e, n in enumerate(said or lengths)
    ]
    put(root / "meta/episodes.jsonl", rows)


def v3(root, files, cameras=TOP, drift=0.0, change=None):
    """files: lengths of the episodes in each; drift: seconds more in from_timestamp an episode."""
    rows, start, episode = [], 0, 0
    for number, lengths in enumerate(files):
        tables, frames, began = [], [], 0.0
        pictures = [key for key, dtype in cameras.items() if dtype == "image"]
        for steps in lengths:
            tables.append(table(episode, steps, start, pictures))
            frames += [pixels(episode, t) for t in range(steps)]
            row = {
                "episode_index": episode,
                "tasks": ["pick the cube"],
                "length": steps,
                "data/chunk_index": 0,
                "data/file_index": number,
                "dataset_from_index": start,
                "dataset_to_index": start + steps,
            }
            off = drift * episode
            for key in (key for key, dtype in cameras.items() if dtype == "video"):
                row |= {
                    f"videos/{key}/chunk_index": 0,
                    f"videos/{key}/file_index": number,
                    f"videos/{key}/from_timestamp": began + off,
                    f"videos/{key}/to_timestamp": began + steps / FPS + off,
                }
            rows.append(row)
            began, start, episode = began + steps / FPS, start + steps, episode + 1
        file = root / f"data/chunk-000/file-{number:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), file)
        for key in (key for key, dtype in cameras.items() if dtype == "video"):
            video(root / f"videos/{key}/chunk-000/file-{number:03d}.mp4", frames)
    put(root / "meta/info.json", info("v3.0", cameras, episode, start))
    pq.write_table(
        pa.table({"task_index": [0], "task": ["pick the cube"]}), root / "meta/tasks.parquet"
    )
    file = root / "meta/episodes/chunk-000/file-000.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(change(rows) if change else rows), file)


def edit(root, change):
    file = root / "meta/info.json"
    facts = json.loads(file.read_text())
    change(facts["features"])
    put(file, facts)


def depth_first(root):
    depth, top = "observation.images.depth", "observation.images.top"
    flat = np.tile(np.arange(48, dtype=np.uint8)[:, None] * 5, (1, 64))

    def cell(camera, t):
        return {"bytes": png(flat if camera == depth else pixels(0, t)), "path": None}

    v2(root, (8, 8), {depth: "image", top: "image"}, each=lambda episode: {"cell": cell})
    edit(
        root,
        lambda features: features[depth].update(
            shape=[48, 64, 1], info={"video.is_depth_map": True}
        ),
    )


def no_state(root):
    v2(root, (8, 8), each=lambda episode: {"state_key": ""})
    edit(root, lambda features: features.pop("observation.state"))


def bare_names(root):
    def cell(camera, t):
        return {"bytes": None, "path": f"frame_{t:06d}.png"}

    v2(root, (8, 8), each=lambda episode: {"cell": cell})
    for episode in range(2):
        folder = root / f"images/observation.images.top/episode_{episode:06d}"
        folder.mkdir(parents=True)
        for t in range(8):
            (folder / f"frame_{t:06d}.png").write_bytes(png(pixels(episode, t)))


def pointers(root, pattern):
    (v3 if pattern.startswith("meta") else v2)(
        root,
        ((8, 8),) if pattern.startswith("meta") else (8, 8),
        TOP_VIDEO if pattern.endswith("mp4") else TOP,
    )
    for file in root.glob(pattern):
        file.write_text(POINTER)


def seven(change, steps=40):
    """Arguments of `table` for seven random actions, one dimension changed."""

    def each(episode):
        action = random.uniform(-1, 1, (steps, 7)).astype("f4")
        change(action)
        return {"action": action, "state": action.copy()}

    return {"each": each, "state": 7, "action": 7}


def closes_twice(action):
    action[:, 6] = 0
    action[200:202, 6] = 1


def hundred(action):
    action[:, 6] = random.choice([0, 100], len(action))


def wraps(action):
    yaw = np.pi + random.normal(scale=0.05, size=len(action))
    action[:, 5] = (yaw + np.pi) % (2 * np.pi) - np.pi


def named_motors(root):
    v2(root, (20, 20))
    names = {"motors": [f"main_{number}" for number in range(6)]}
    edit(
        root,
        lambda features: [
            features[key].update(names=names) for key in ("action", "observation.state")
        ],
    )


def previous_file(rows):
    rows[2]["data/file_index"] = 0
    return rows


def without_videos(rows):
    return [{k: v for k, v in row.items() if not k.startswith("videos/")} for row in rows]


FOUR = ((20, 20, 20, 20),)
CASES = {
    "V-A04": lambda root: v3(root, FOUR, TOP_VIDEO, drift=0.033),
    "V-A05": lambda root: v3(root, FOUR, TOP_VIDEO, drift=0.11),
    "V-A06": lambda root: v2(
        root, (20, 20), TOP_VIDEO, each=lambda episode: {"times": np.arange(20) * 0.125 + 0.003}
    ),
    "V-A07": lambda root: v2(root, (20, 20), fps=30),
    "V-A09": lambda root: v2(
        root,
        (20, 20),
        tasks=("open the drawer", "put the block in"),
        each=lambda episode: {"tasks": np.repeat([0, 1], 10)},
    ),
    "V-A10": lambda root: v2(root, (10,) * 12, missing=range(2, 12)),
    "V-A11": depth_first,
    "V-A13": bare_names,
    "V-A14": lambda root: pointers(root, "data/chunk-000/*.parquet"),
    "V-A15": lambda root: pointers(root, "videos/chunk-000/*/*.mp4"),
    "V-A16": lambda root: pointers(root, "meta/tasks.parquet"),
    "V-A18": lambda root: v3(root, ((8, 8),), TOP_VIDEO, change=without_videos),
    "V-A20": no_state,
    "V-A21": lambda root: v2(root, (20, 20), TOP_VIDEO, shown=17),
    "V-A22": lambda root: v2(root, (400, 400), **seven(closes_twice, 400)),
    "V-A23": lambda root: v2(root, (40, 40), **seven(hundred)),
    "V-A25": lambda root: v2(root, (20, 20), each=lambda e: {"state": walk(20, 6 + e)}),
    "V-A26": lambda root: v2(root, (20, 20), {}),
    "V-A27": named_motors,
    "V-A28": lambda root: v2(root, (40, 40), **seven(wraps)),
    "V-A30": lambda root: v2(
        root, (10, 10), {"observation.images.wrist": "image", "observation.images.front": "image"}
    ),
    "V-A31": lambda root: v3(root, ((20, 13), (31,)), change=previous_file),
    "V-A32": lambda root: v2(root, (20, 20), said=(12, 12)),
}
