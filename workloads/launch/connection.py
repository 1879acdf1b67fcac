"""One connection between two nodes: a JSON object a line, and a beat when there is none to send."""

import contextlib
import json
import queue
import socket
import threading
import time
from typing import Any


class Connection:
    """One connection: lines in by a thread, lines out under a lock, a beat when it is quiet."""

    def __init__(self, link: socket.socket, beat: float) -> None:
        self.inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self.heard = time.monotonic()
        self.open = True
        self._link, self._beat, self._lock = link, beat, threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def _read(self) -> None:
        try:
            with self._link.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    self.heard = time.monotonic()
                    message = json.loads(line)
                    if message["type"] != "beat":
                        self.inbox.put(message)
        except (OSError, ValueError, KeyError):
            pass
        self.open = False

    def _keep_alive(self) -> None:
        while self.open:
            self.send("beat")
            time.sleep(self._beat)

    def send(self, kind: str, **facts: Any) -> None:
        line = json.dumps({"type": kind, **facts}) + "\n"
        try:
            with self._lock:
                self._link.sendall(line.encode())
        except OSError:
            self.open = False

    def lost(self, silence: float) -> bool:
        return not self.open or time.monotonic() - self.heard > silence

    def take(self, kind: str) -> dict[str, Any] | None:
        """The next message of a kind; older ones of other kinds are dropped."""
        while True:
            try:
                message = self.inbox.get_nowait()
            except queue.Empty:
                return None
            if message["type"] == kind:
                return message

    def peek(self, kind: str) -> dict[str, Any] | None:
        """The oldest waiting message of a kind, left where it is."""
        with self.inbox.mutex:
            return next((one for one in self.inbox.queue if one["type"] == kind), None)

    def close(self) -> None:
        self.open = False
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
