"""What clients send to a served policy: read as they meant it, or refused with a sentence."""

import base64
import io
import json
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from workloads.errors import UserError
from workloads.vla.serve.client import decode, dumps, encode, multipart
from workloads.vla.serve.messages import ActRequest, read

pytestmark = pytest.mark.unit
CAMERAS = ("primary", "wrist")
JSON = "application/json"


def picture(seed: int = 0, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def asked(payload: dict[str, Any], cameras: tuple[str, ...] = CAMERAS) -> ActRequest:
    return read(JSON, dumps(payload).encode(), cameras)


def test_openvla_clients() -> None:
    question = asked({"image": picture(), "instruction": "Take it", "unnorm_key": "bridge"})
    assert question.observation.instruction == "Take it" and question.unnorm_key == "bridge"
    assert np.array_equal(question.observation.images["primary"], picture())
    actions = np.arange(14.0).reshape(2, 7) / 3
    assert np.array_equal(decode(json.loads(question.write(actions[:1], False))), actions[0])


def test_openvla_oft_clients() -> None:
    state = np.linspace(-1, 1, 8, dtype=np.float32)
    payload = {"full_image": picture(), "wrist_image": picture(1), "state": state}
    question = asked({**payload, "instruction": "take it", "t": 3})
    images = question.observation.images
    assert np.array_equal(images["primary"], picture())
    assert np.array_equal(images["wrist"], picture(1))
    assert np.allclose(question.observation.state, state) and question.ignored == ("t",)
    steps = json.loads(question.write(np.arange(14.0).reshape(2, 7), True))
    assert [decode(step).tolist() for step in steps] == np.arange(14.0).reshape(2, 7).tolist()


def test_doubly_encoded() -> None:
    inner = dumps({"image": picture(), "instruction": "take it"})
    question = read(JSON, json.dumps({"encoded": inner}).encode(), CAMERAS)
    assert np.array_equal(question.observation.images["primary"], picture())
    answer = json.loads(json.loads(question.write(np.ones((1, 7)), False)))
    assert np.array_equal(decode(answer), np.ones(7))


def test_forms_with_files_of_any_bytes() -> None:
    fields = {"instruction": "赤いブロックを掴む", "state": "0.5, -1,2e-3"}
    body, kind = multipart(fields, {"image": picture(), "wrist": picture(1)}, "png")
    question = read(kind, body, CAMERAS)
    assert question.observation.instruction == fields["instruction"]
    assert np.array_equal(question.observation.images["primary"], picture())
    assert np.array_equal(question.observation.images["wrist"], picture(1))
    assert question.observation.state is not None
    assert question.observation.state.tolist() == [0.5, -1, 0.002]
    assert question.write(np.array([[0.5, 1.0]]), False) == "[0.5, 1.0]"
    assert question.write(np.array([[0.5, 1.0]]), True) == "[[0.5, 1.0]]"


@pytest.mark.parametrize("seed", range(20))
def test_what_stands_in_a_part_does_not_matter(seed: int) -> None:
    random = np.random.default_rng(seed)
    rubbish = random.integers(0, 256, 3000, dtype=np.uint8).tobytes()
    content = rubbish + b"\r\n--\r\n\r\n-edge \n--edge\n--edg\r\r\n" + rubbish[:seed]
    head = b'Content-Disposition: form-data; name="wrist"; filename="a b.png"\r\n\r\n'
    text = b"--edge\r\ncontent-disposition: form-data; name=instruction\r\n\r\ngo"
    body = text + b"\r\n--edge\r\n" + head + content + b"\r\n--edge--\r\n"
    with pytest.raises(UserError, match="wrist: expected a JPEG or PNG file"):
        read("multipart/form-data; boundary=edge", body, CAMERAS)
    kept = read("multipart/form-data; boundary=edge", body, ("primary",))
    assert kept.observation.instruction == "go" and kept.ignored == ("wrist",)


def test_a_picture_is_never_taken_for_another_cameras() -> None:
    question = asked({"full_image": picture(), "left_wrist_image": picture(1), "instruction": "go"})
    assert set(question.observation.images) == {"primary"}
    assert question.ignored == ("left_wrist_image",)


@pytest.mark.parametrize("kind", ["<f4", ">f8", "|u1", "<i8", "float32", "uint8", "|b1", "<f2"])
def test_arrays_of_numbers_come_back(kind: str) -> None:
    array = (np.arange(24).reshape(2, 3, 4) % 2).astype(kind)
    assert np.array_equal(decode(json.loads(dumps(array))), array)
    assert np.array_equal(decode(encode(array[:, ::2])), array[:, ::2])
    assert decode(encode(np.float64(3.5).reshape(()))) == 3.5


def coded(**changes: Any) -> dict[str, Any]:
    return {
        "__numpy__": base64.b64encode(bytes(12)).decode(),
        "dtype": "|u1",
        "shape": [2, 2, 3],
    } | changes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dtype": "|O"}, "expected an array of numbers"),
        ({"dtype": "|O8"}, "expected an array of numbers"),
        ({"dtype": "|S12"}, "expected an array of numbers"),
        ({"dtype": [["a", "<f4"]]}, "expected an array of numbers"),
        ({"dtype": "i4,i4"}, "expected an array of numbers"),
        ({"shape": [2, 2, 4]}, "found 12 bytes"),
        ({"shape": [-2, -2, 3]}, "whole numbers"),
        ({"shape": [2, 2, True]}, "whole numbers"),
        ({"shape": [2**62, 4, 0]}, "whole numbers"),
        ({"__numpy__": "", "shape": [2**70, 0]}, "whole numbers"),
        ({"shape": 12}, "expected an array with"),
        ({"shape": [1] * 9}, "expected an array with"),
        ({"__numpy__": "?" * 16}, "base64"),
        ({"__numpy__": 5}, "expected an array with"),
        ({"dtype": "<f4", "shape": [1, 1, 3]}, r"expected uint8 \[height, width, 3\] RGB"),
        ({"shape": [4, 3]}, r"expected uint8 \[height, width, 3\] RGB"),
        ({"shape": [1, 4, 3, 1]}, r"expected uint8 \[height, width, 3\] RGB"),
        ({"__numpy__": "", "shape": [0, 4, 3]}, r"expected uint8 \[height, width, 3\] RGB"),
    ],
)
def test_arrays_that_are_no_picture(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^image: .*{sentence}"):
        asked({"image": coded(**changes), "instruction": "go"})


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""
    data = io.BytesIO()
    Image.new("RGB", (1, 1)).save(data, "PNG")
    head = b"IHDR" + side.to_bytes(4, "big") * 2 + data.getvalue()[24:29]
    return data.getvalue()[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data.getvalue()[33:]


def form(name: str, content: bytes) -> tuple[str, bytes]:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
    return "multipart/form-data; boundary=x", head + content + b"\r\n--x--\r\n"


def gif() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "GIF")
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (bomb(60000), "image decode error.*decompression bomb"),
        (bomb(5000), "expected at most 16,777,216 pixels, found 5000 x 5000"),
        (b"\xff\xd8\xff\xe0 no jpeg", "image decode error"),
        (b"\x89PNG\r\n\x1a\n", "image decode error"),
        (gif(), "expected a JPEG or PNG file"),
        (b"", "expected a JPEG or PNG file"),
    ],
)
def test_files_that_are_no_picture(content: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^image: .*{sentence}"):
        read(*form("image", content), CAMERAS)


def test_a_large_array_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.vla.serve.messages.MOST_PIXELS", 100)
    with pytest.raises(UserError, match="at most 100 pixels, found 30 x 20"):
        asked({"image": picture(), "instruction": "go"})


DEEP = b'{"image":' + b"[" * 200_000


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        (JSON, b"{", "expected JSON"),
        (JSON, DEEP, "expected JSON"),
        (JSON, b"\xff\xfe", "expected JSON"),
        (JSON, b"[1]", "expected a JSON object"),
        (JSON, b'{"encoded": "{}", "image": 1}', "expected 'encoded' alone"),
        (JSON, b'{"encoded": {}}', "expected 'encoded' alone"),
        (JSON, b'{"image": [[[1, 2, 3]]]}', "image: expected an image as an array"),
        (JSON, b'{"image": "aGVsbG8="}', "image: expected an image as an array"),
        (JSON, b'{"instruction": 5}', "instruction: expected a text"),
        (JSON, b'{"instruction": "%s"}' % (b"a" * 2001), "at most 2000 characters"),
        (JSON, b'{"state": {"a": 1}}', "state: expected a list of numbers"),
        (JSON, b'{"proprio": [1, "2"]}', "proprio: expected a list of numbers"),
        (JSON, b'{"state": [1, true]}', "found True in it"),
        (JSON, rb'{"instruction": "go \ud83d"}', "instruction: expected whole characters"),
        (JSON, b'{"state": [1%s]}' % (b"0" * 400), "state: expected a list of numbers"),
        (JSON, b'{"state": [1%s]}' % (b"0" * 5000), "expected JSON"),
        (JSON, b'{"unnorm_key": ["a"]}', "unnorm_key: expected a text"),
        ("text/plain", b"hello", "expected application/json or multipart/form-data"),
        ("", b"", "expected application/json or multipart/form-data"),
        ("multipart/form-data", b"--x--", "expected a boundary"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nabc", "cut off"),
        ("multipart/form-data; boundary=x", b"--x\r\nno name\r\n\r\n\r\n--x--", "expected a name"),
        (*form("state", b"a,b"), "state: expected numbers"),
        (*form("state", b"__import__('os')"), "state: expected numbers"),
        (*form("instruction", b"\xff"), "expected text in UTF-8"),
    ],
)
def test_bodies_that_cannot_be_read(kind: str, body: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(kind, body, CAMERAS)


def test_a_form_names_each_part_once_and_has_few() -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n1\r\n'
    twice = part % 1 + part % 1 + b"--x--\r\n"
    with pytest.raises(UserError, match="a1: expected once in the form, found twice"):
        read("multipart/form-data; boundary=x", twice, CAMERAS)
    many = b"".join(part % number for number in range(200)) + b"--x--\r\n"
    with pytest.raises(UserError, match="expected at most 30 parts"):
        read("multipart/form-data; boundary=x", many, CAMERAS)
