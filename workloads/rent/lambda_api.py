"""Client of Lambda's Cloud API, version 1, which keeps its rate limits and reports error codes.

The key travels in a header alone. Redirects are refused: one would turn POST into GET.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from workloads.errors import Retry, TataraError, UserError
from workloads.rent.clock import Clock

URL = "https://cloud.lambda.ai/api/v1"
LAUNCH, TERMINATE = "/instance-operations/launch", "/instance-operations/terminate"
_PACE, _LAUNCH_PACE = 1.0, 12.0  # seconds between two requests; between two launches
_TRIES = 6  # attempts of a request that is refused for its rate, or not answered
_SECONDS = 30.0  # seconds for one answer
# method, URL, headers, body → status and text; OSError where there is no answer
Send = Callable[[str, str, dict[str, str], bytes | None], tuple[int, str]]


class ApiError(TataraError):
    """An error of the API; `code` identifies its kind."""

    def __init__(self, status: int, code: str, message: str, suggestion: str = "") -> None:
        text = f"Lambda: {message} ({code})"
        super().__init__(f"{text}; {suggestion}" if suggestion else text)
        self.status, self.code = status, code

    @property
    def is_missing(self) -> bool:
        return self.status == 404 or self.code == "global/object-does-not-exist"


class LambdaApi:
    """One account. The key appears in no returned text and no error."""

    def __init__(
        self, key: str, url: str = "", clock: Clock | None = None, send: Send | None = None
    ) -> None:
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Accept": "application/json",
            "User-Agent": "tatara",
        }
        self.url = (url or URL).rstrip("/")
        self._clock = clock or Clock()
        self._send = send or _send
        self._next = self._next_launch = 0.0

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The `data` of an answer.

        Raises UserError for a key that is refused, ApiError for another error of the API, Retry
        where no answer came. A launch that may have been received is not repeated.
        """
        headers, content = dict(self._headers), None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        pause = _PACE
        for last in (False,) * (_TRIES - 1) + (True,):
            self._wait(path)
            try:
                status, text = self._send(method, self.url + path, headers, content)
            except OSError as error:
                if last or path == LAUNCH:
                    raise Retry(f"Lambda gave no answer: {_reason(error)}") from None
            else:
                if status != 429:
                    return _data(status, text)
                if last:
                    raise Retry("Lambda: too many requests (429), also after waiting")
                # A launch that was refused for its rate was not carried out.
                pause = max(pause, _LAUNCH_PACE if path == LAUNCH else _PACE)
            self._clock.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable")

    def _wait(self, path: str) -> None:
        now = self._clock.time()
        begin = max(self._next, self._next_launch if path == LAUNCH else 0.0)
        if begin > now:
            self._clock.sleep(begin - now)
            now = self._clock.time()
        self._next = now + _PACE
        if path == LAUNCH:
            self._next_launch = now + _LAUNCH_PACE


def _data(status: int, text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, dict) and status < 300 and "data" in found:
        return found["data"]
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        raise ApiError(status, f"http {status}", "expected an answer of its API, found another")
    code, message = str(error.get("code", f"http {status}")), str(error.get("message", ""))
    if code in ("global/invalid-api-key", "global/account-inactive"):
        raise UserError(
            f"LAMBDA_API_KEY: Lambda refuses it: {message} ({code}); make one in its console under "
            "API keys, and put it into .env"
        )
    raise ApiError(status, code, message, str(error.get("suggestion") or ""))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _send(method: str, url: str, headers: dict[str, str], body: bytes | None) -> tuple[int, str]:
    request = urllib.request.Request(url, body, headers, method=method)
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        # The body of a 429 is not the API's own.
        return error.code, "" if error.code == 429 else error.read().decode(errors="replace")


def _reason(error: OSError) -> str:
    return str(error.reason if isinstance(error, urllib.error.URLError) else error)
