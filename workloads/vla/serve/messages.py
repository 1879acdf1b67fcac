"""Requests of a served policy's clients as observations, and answers in each client's format.

Three formats are known: json-numpy (`{"image": array, "instruction": …}` as OpenVLA's clients send
it, `full_image`, `wrist_image` and `state` as OpenVLA-OFT's), the same once more inside of
`{"encoded": "…"}`, and multipart/form-data with JPEG or PNG files. No code in a request is ever
run: arrays hold numbers of checked size, images are JPEG or PNG of checked size.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any

import numpy as np

from workloads.data.robot import images
from workloads.errors import UserError
from workloads.vla.policy import Observation
from workloads.vla.serve.client import decode, dumps, encode, is_encoded

MOST_PIXELS = 4096 * 4096
MOST_WORDS = 2000  # characters of an instruction
MOST_NAME = 200  # characters of an episode's name
_MOST_PARTS = 32
_JPEG_OR_PNG = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_STATES = ("state", "proprio")
# Names of the first camera for clients with one camera, or without its name.
_FIRST = ("image", "full_image")

_FLAGS = {"true": True, "1": True, "false": False, "0": False}

Fields = Mapping[str, Any]
Writer = Callable[[np.ndarray, bool], str]


@dataclass(frozen=True)
class ActRequest:
    """An observation, the format of the answer, and the names of unused fields.

    episode: name of the frame's episode; None for a single frame. reset: restart the episode.
    """

    observation: Observation
    unnorm_key: str | None
    write: Writer
    ignored: tuple[str, ...]
    episode: str | None = None
    reset: bool = False


class UnknownKind(UserError):
    """Error for a body that is neither JSON nor a form."""


def read(
    content_type: str, body: bytes, cameras: Sequence[str], takes_state: bool = True
) -> ActRequest:
    """Parse a request's body as a question to a policy with these cameras.

    takes_state: whether the policy uses the robot's state. Raises UserError for an invalid body.
    """
    fields, write = _fields(content_type, body)
    return _question(fields, cameras, takes_state, write)


def _fields(content_type: str, body: bytes) -> tuple[Fields, Writer]:
    """A body's fields, and the format of actions for its client."""
    header = Message()
    header["Content-Type"] = content_type
    kind = header.get_content_type()
    if kind == "multipart/form-data":
        return _form(body, header.get_param("boundary")), _as_list
    if kind != "application/json":
        raise UnknownKind(
            f"expected application/json or multipart/form-data, found {content_type[:80]!r}"
        )
    payload = _object(body)
    if "encoded" not in payload:
        return payload, _as_arrays
    inner = payload["encoded"]
    if len(payload) > 1 or not isinstance(inner, str):
        raise UserError(
            f"expected 'encoded' alone, with JSON in a text, found {', '.join(payload)}"
        )
    return _object(inner), lambda *all: json.dumps(_as_arrays(*all))


def _as_list(actions: np.ndarray, chunked: bool) -> str:
    return json.dumps(actions.tolist() if chunked else actions[0].tolist())


def _as_arrays(actions: np.ndarray, chunked: bool) -> str:
    """Whether to answer with arrays: OpenVLA's server sends one, OpenVLA-OFT's a list by steps."""
    return dumps([encode(row) for row in actions] if chunked else encode(actions[0]))


def _object(text: bytes | str) -> dict[str, Any]:
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON, found none: {str(error)[:120]}") from None
    if not isinstance(payload, dict):
        raise UserError("expected a JSON object with image and instruction, found something else")
    return payload


def _question(
    fields: Fields, cameras: Sequence[str], takes_state: bool, write: Writer
) -> ActRequest:
    images, used = _images(fields, cameras)
    used |= {"instruction", "unnorm_key", "episode", "reset"}
    state = None
    state_name = next((name for name in _STATES if fields.get(name) is not None), None)
    if takes_state and state_name is not None:
        state = _state(fields[state_name], state_name)
        used.add(state_name)
    observation = Observation(images, _text(fields, "instruction") or "", state)
    ignored = tuple(name for name in fields if name not in used)
    episode, reset = episode_of(fields), _flag(fields, "reset")
    if reset and episode is None:
        raise UserError("reset: expected an episode to begin anew, found none; name it")
    return ActRequest(observation, _text(fields, "unnorm_key"), write, ignored, episode, reset)


def ended(content_type: str, body: bytes) -> str:
    """The name of the episode to end, in JSON or a form. Raises UserError without a name."""
    fields, _ = _fields(content_type, body)
    episode = episode_of(fields)
    if episode is None:
        raise UserError('expected the name of an episode, found none; send {"episode": NAME}')
    return episode


def episode_of(fields: Fields) -> str | None:
    """The name of an episode; None where the request has none.

    Raises UserError for a name that is empty or too long.
    """
    value = fields.get("episode")
    # Programs that count their episodes send a number.
    name = _text({"episode": str(value) if type(value) is int else value}, "episode")
    if name is not None and not 0 < len(name) <= MOST_NAME:
        raise UserError(f"episode: expected a name of 1 to {MOST_NAME} characters")
    return name


def _flag(fields: Fields, name: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    text = (_text(fields, name) or "").strip().lower() if isinstance(value, bytes | str) else ""
    if text not in _FLAGS:
        raise UserError(f"{name}: expected true or false, found {str(value)[:40]!r}")
    return _FLAGS[text]


def _images(fields: Fields, cameras: Sequence[str]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Images by camera, and their fields. An image is only used for the camera that it names,
    except the first camera, which is often just `image`."""
    images, used = {}, set()
    for number, camera in enumerate(cameras):
        names = (camera, f"image_{camera}", f"{camera}_image", *(_FIRST if number == 0 else ()))
        found = next((name for name in names if fields.get(name) is not None), None)
        if found is not None:
            images[camera] = _image(fields[found], found)
            used.add(found)
    return images, used


def _image(value: Any, name: str) -> np.ndarray:
    if isinstance(value, bytes):
        return _decoded(value, name)
    if not is_encoded(value):
        kinds = {"list": "a list", "str": "a text", "dict": "an object"}
        found = kinds.get(type(value).__name__, "something else")
        raise UserError(
            f"{name}: expected an image as an array in json-numpy, found {found}; call "
            "json_numpy.patch() before json.dumps, or send it as a file in a form "
            "(curl -F image=@frame.jpg)"
        )
    pixels = _array(value, name)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise UserError(
            f"{name}: expected uint8 [height, width, 3] RGB, found {pixels.dtype} "
            f"{list(pixels.shape)}"
        )
    _check_size(name, *pixels.shape[:2])
    return pixels


def _decoded(encoded: bytes, name: str) -> np.ndarray:
    """Decode a JPEG or PNG after a check of its size."""
    if not encoded.startswith(_JPEG_OR_PNG):
        raise UserError(f"{name}: expected a JPEG or PNG file, found something else")
    try:
        _check_size(name, *images.shape_of(encoded))
        return images.decode(encoded, is_photograph=True)
    except images.ImageError as error:
        raise UserError(f"{name}: {error}; send a whole image") from None


def _check_size(name: str, height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise UserError(
            f"{name}: expected at most {MOST_PIXELS:,} pixels, found {width} x {height}; send it "
            "smaller, the model sees 224 x 224"
        )


def _state(value: Any, name: str) -> np.ndarray:
    """A state [P] from a list of numbers or an array; in a form `[0.1, 0.2]` or `0.1,0.2`."""
    if isinstance(value, bytes):
        text = _as_text(value, name).strip()
        try:
            value = json.loads(text if text.startswith("[") else f"[{text}]")
        except (ValueError, RecursionError):
            raise UserError(f"{name}: expected numbers, found {text[:60]!r}") from None
    if is_encoded(value):
        array = _array(value, name)
    elif isinstance(value, list) and all(_is_number(item) for item in value):
        array = np.asarray(value, dtype=np.float64)
    else:
        odd = [item for item in value if not _is_number(item)] if isinstance(value, list) else []
        found = f"{str(odd[0])[:40]} in it" if odd else type(value).__name__
        raise UserError(
            f"{name}: expected a list of numbers or an array in json-numpy, found {found}"
        )
    return array.astype(np.float64)


def _is_number(value: Any) -> bool:
    """Whether a value is a number that fits a float; integers of JSON may not."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 64)


def _array(value: Mapping[str, Any], name: str) -> np.ndarray:
    try:
        return decode(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def _text(fields: Fields, name: str) -> str | None:
    value = fields.get(name)
    if isinstance(value, bytes):
        value = _as_text(value, name)
    if value is None or (name == "unnorm_key" and value == ""):
        return None
    if not isinstance(value, str) or len(value) > MOST_WORDS:
        raise UserError(f"{name}: expected a text of at most {MOST_WORDS} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{name}: expected whole characters, found half of one (a lone surrogate)"
        ) from None
    return value


def _as_text(value: bytes, name: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{name}: expected text in UTF-8, found other bytes") from None


def _form(body: bytes, boundary: Any) -> dict[str, bytes]:
    """The parts of a multipart/form-data body by name."""
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise UserError("expected a boundary in the Content-Type of the form, found none")
    # The line break before a boundary belongs to it; the first boundary has none.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise UserError("expected a form that ends with its boundary, found it cut off")
    if len(pieces) > _MOST_PARTS:
        raise UserError(f"expected at most {_MOST_PARTS - 2} parts in the form, found more")
    fields: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        head, blank, content = piece.partition(b"\r\n\r\n")
        header = BytesHeaderParser().parsebytes(head.lstrip(b" \t\r\n") + b"\r\n\r\n")
        name = header.get_param("name", header="content-disposition")
        if not blank or not isinstance(name, str):
            raise UserError("expected a name in every part of the form, found one without")
        if name in fields:
            raise UserError(f"{name}: expected once in the form, found twice")
        fields[name] = content
    return fields
