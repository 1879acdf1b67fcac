"""Ask a served policy: `python -m workloads.vla.serve.client --image X.jpg --instruction TEXT`.

This file only needs numpy and Pillow: copy it beside a robot's own program. It works with `tatara
serve`, and with `send="json-numpy"` with OpenVLA's and OpenVLA-OFT's own servers, too.
"""

import argparse
import base64
import binascii
import http.client
import io
import json
import math
import os
import re
import struct
import sys
import uuid
from collections.abc import Mapping, Sequence
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageOps

URL = "http://127.0.0.1:8000/act"
TOKEN = "TATARA_SERVE_TOKEN"
WAYS = ("jpeg", "png", "json-numpy")
_MARK = "__numpy__"
_LARGEST = 1 << 31  # of an axis: numpy's own integers end not far beyond
# Allowed dtypes of numbers: no objects, text or records.
_NUMBERS = re.compile(r"[<>=|]?(?:[iu][1248]|f[248]|b1)|u?int(?:8|16|32|64)|float(?:16|32|64)|bool")


class ServerError(RuntimeError):
    """The server refused or failed: `status` is HTTP's, the text the server's message."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{text} (status {status})")
        self.status = status


class PolicyClient:
    """A persistent connection; `act` may be called for every frame.

    token: default: TATARA_SERVE_TOKEN of the environment. send: images as "jpeg" (small), "png"
    (without loss) or as arrays in "json-numpy". Not for several threads at once.
    """

    def __init__(
        self, url: str = URL, token: str | None = None, timeout: float = 30.0, send: str = "jpeg"
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected a URL such as {URL}, found {url!r}")
        if send not in WAYS:
            raise ValueError(f"expected send of {', '.join(WAYS)}, found {send!r}")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._path = parts.path if parts.path not in ("", "/") else "/act"
        self._token = token or os.environ.get(TOKEN)
        self._send = send
        self.latency: float | None = None  # seconds that the server took for the last answer
        self.frame: int | None = None  # index of the last answer's frame in its episode

    def act(
        self,
        instruction: str,
        images: np.ndarray | Mapping[str, np.ndarray],
        state: Sequence[float] | np.ndarray | None = None,
        unnorm_key: str | None = None,
        episode: str | None = None,
        reset: bool = False,
    ) -> np.ndarray:
        """The action [A] in the robot's units, or the steps [chunk, A] of a policy with chunks.

        images: uint8 [H, W, 3] RGB, one or by camera. episode: a name of your own, sent with every
        frame of it, for a policy that remembers; the answer is then the one action to execute now.
        reset: restart the episode with this frame. Raises ServerError where the server refuses
        or its answer is no action, and OSError or HTTPException where no server answers.
        """
        named = {"image": images} if isinstance(images, np.ndarray) else dict(images)
        fields: dict[str, Any] = {"instruction": instruction}
        if unnorm_key is not None:
            fields["unnorm_key"] = unnorm_key
        if episode is not None:
            fields |= {"episode": episode, "reset": "true" if reset else "false"}
        if self._send == "json-numpy":
            arrays = named if state is None else {**named, "state": np.asarray(state)}
            body = dumps({**fields, **arrays}).encode()
            kind = "application/json"
        else:
            if state is not None:
                fields["state"] = json.dumps(np.asarray(state, dtype=np.float64).tolist())
            body, kind = multipart(fields, named, self._send)
        return _actions(self._asked("POST", self._path, body, kind))

    def reset(self, episode: str) -> None:
        """End an episode on the server."""
        body = json.dumps({"episode": episode}).encode()
        path = self._path.removesuffix("/act") + "/reset"
        self._asked("POST", path, body, "application/json")

    def health(self) -> dict[str, Any]:
        """The server's status."""
        content = self._asked("GET", "/health", b"", "")
        try:
            found: dict[str, Any] = json.loads(content)
        except ValueError:
            raise ServerError(200, f"expected JSON, found {content[:80]!r}") from None
        return found

    def close(self) -> None:
        self._connection.close()

    def _asked(self, method: str, path: str, body: bytes, kind: str) -> bytes:
        headers = {"Content-Type": kind} if kind else {}
        if self._token:
            # http.client writes Latin-1: so the bytes of a header are those of UTF-8.
            headers["Authorization"] = f"Bearer {self._token}".encode().decode("latin-1")
        kept = self._connection.sock is not None
        try:
            status, response_headers, content = self._response(method, path, body, headers)
        except ConnectionError:
            # The server may have closed an idle connection: try once more.
            if not kept:
                raise
            status, response_headers, content = self._response(method, path, body, headers)
        if status != 200:
            raise ServerError(status, _sentence(content))
        took = response_headers.get("X-Latency-Ms")
        self.latency = None if took is None else float(took) / 1000
        frame = response_headers.get("X-Episode-Frame", "")
        self.frame = int(frame) if frame.isdecimal() else None
        return content

    def _response(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, Message, bytes]:
        """Status, headers and content of the answer."""
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.headers, response.read()
        except BaseException:
            # http.client keeps a connection whose answer did not come whole, and refuses every
            # further request on it.
            self._connection.close()
            raise


def encode(array: np.ndarray) -> dict[str, Any]:
    """An array of any shape as json-numpy writes it."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {_MARK: data, "dtype": array.dtype.str, "shape": list(array.shape)}


def is_encoded(value: object) -> bool:
    return isinstance(value, dict) and _MARK in value


def decode(value: Mapping[str, Any]) -> np.ndarray:
    """An array as json-numpy wrote it: numbers only, of the shape it says, or ValueError."""
    dtype, shape, data = value.get("dtype"), value.get("shape"), value.get(_MARK)
    if not isinstance(dtype, str) or not _NUMBERS.fullmatch(dtype):
        raise ValueError(f"expected an array of numbers, found dtype {str(dtype)[:40]!r}")
    if not isinstance(data, str) or not isinstance(shape, list) or len(shape) > 8:
        raise ValueError(f"expected an array with {_MARK}, dtype and shape, found {list(value)}")
    if any(type(size) is not int or not 0 <= size < _LARGEST for size in shape):
        raise ValueError(f"expected a shape of whole numbers below 2**31, found {str(shape)[:80]}")
    try:
        raw = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"expected an array in base64, found: {error}") from None
    kind = np.dtype(dtype)
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"expected {shape} values of {dtype}, found {len(raw)} bytes")
    return np.frombuffer(raw, kind).reshape(shape)


def dumps(value: object) -> str:
    """JSON with arrays as json-numpy writes them."""

    def other(value: object) -> object:
        if isinstance(value, np.ndarray | np.generic):
            return encode(np.asarray(value))
        raise TypeError(f"expected values that JSON has, found {type(value).__name__}")

    return json.dumps(value, default=other)


def multipart(
    fields: Mapping[str, str], images: Mapping[str, np.ndarray], kind: str
) -> tuple[bytes, str]:
    """A form with texts and image files, uint8 [H, W, 3] each, and its Content-Type."""
    boundary = uuid.uuid4().hex
    body = io.BytesIO()
    for name, text in fields.items():
        body.write(f"--{boundary}\r\n".encode())
        body.write(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode())
    for name, pixels in images.items():
        head = f'Content-Disposition: form-data; name="{name}"; filename="{name}.{kind}"'
        body.write(f"--{boundary}\r\n{head}\r\nContent-Type: image/{kind}\r\n\r\n".encode())
        options = {"quality": 95} if kind == "jpeg" else {"compress_level": 1}
        Image.fromarray(pixels).save(body, format=kind, **options)
        body.write(b"\r\n")
    body.write(f"--{boundary}--\r\n".encode())
    return body.getvalue(), f"multipart/form-data; boundary={boundary}"


def _actions(content: bytes) -> np.ndarray:
    """One action or a list of them, [A] or [chunk, A], in any server's format. Raises ServerError
    for other answers, and for numbers that are not finite."""
    try:
        found = json.loads(content)
        if is_encoded(found):
            actions = decode(found).astype(np.float64)
        else:
            rows = [decode(row) if is_encoded(row) else row for row in found]
            actions = np.asarray(rows, dtype=np.float64)
    except (ValueError, TypeError, RecursionError) as error:
        text = f"expected actions, found {content[:80]!r} ({error})"
        raise ServerError(200, text) from None
    if actions.ndim not in (1, 2) or actions.size == 0 or not np.isfinite(actions).all():
        raise ServerError(200, f"expected finite actions, found {content[:80]!r}")
    return actions


def _sentence(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace") or "no reason given"


def main(words: Sequence[str] | None = None) -> int:
    """Print each answer as a line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m workloads.vla.serve.client",
        description="Ask a served policy for an action.",
    )
    parser.add_argument(
        "--image",
        action="append",
        required=True,
        metavar="[CAMERA=]FILE",
        help="an image; once for each camera",
    )
    parser.add_argument("--instruction", required=True, metavar="TEXT")
    parser.add_argument("--state", metavar="A,B,…", help="the robot's state, in its own units")
    parser.add_argument(
        "--unnorm-key", metavar="NAME", help="dataset whose statistics give the units"
    )
    parser.add_argument("--url", default=URL, help=f"default {URL}")
    parser.add_argument("--send", choices=WAYS, default="jpeg", help="encoding of the images")
    parser.add_argument(
        "--episode", metavar="NAME", help="episode of the frame, for policies with memory"
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="number of requests")
    args = parser.parse_args(words)
    try:
        images = dict(_image(word) for word in args.image)
        state = [float(part) for part in args.state.split(",")] if args.state else None
        client = PolicyClient(args.url, send=args.send)
        for _ in range(args.repeat):
            actions = client.act(args.instruction, images, state, args.unnorm_key, args.episode)
            took = None if client.latency is None else round(1000 * client.latency, 1)
            print(json.dumps({"action": actions.tolist(), "server_ms": took}))
    except (OSError, ValueError, struct.error, ServerError) as error:
        print(f"no action: {error}", file=sys.stderr)
        return 2
    return 0


def _image(word: str) -> tuple[str, np.ndarray]:
    name, equals, file = word.rpartition("=")
    with Image.open(Path(file)) as image:
        return (name if equals else "image"), np.asarray(_to_rgb(ImageOps.exif_transpose(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    """As `to_rgb` of `workloads/data/images.py`, which this file must not import."""
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


if __name__ == "__main__":
    sys.exit(main())
