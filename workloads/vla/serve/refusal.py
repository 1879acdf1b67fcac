"""The refusal of a request by a served policy."""

from http import HTTPStatus


class Refused(Exception):
    """HTTP's status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status
