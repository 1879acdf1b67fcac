"""Chat with a language model in the terminal: RUN's exported model, or MODEL by folder or hub name.

Lines from a pipe are asked one after the other, in one conversation. While talking: /system TEXT,
/adapter NAME, /reset, /save FILE, /quit; Ctrl-C stops an answer, and at the prompt it leaves."""

import argparse
import json
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.commands.common import loaded_environment, no_settings
from workloads.commands.speaking import add_sampling, add_speaker, sampling_of, speaker_of
from workloads.errors import EXIT_DONE, UserError

if TYPE_CHECKING:
    from workloads.llm.speaker import Sampling, Speaker

# A model's answer must not move the cursor or set the terminal's title.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_HELP = "/system TEXT  /adapter NAME  /reset  /save FILE  /help  /quit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_speaker(parser)
    add_sampling(parser, max_new_tokens=512, temperature=0.7)
    parser.add_argument("--system", metavar="TEXT", help="a system turn before the conversation")
    parser.add_argument(
        "--compare", choices=["base"], help="answer twice: as trained, and by the base alone"
    )


def main(args: argparse.Namespace, words: Sequence[str]) -> int:
    no_settings(words)
    env = loaded_environment()
    speaker, base = speaker_of(args, env, with_base=args.compare == "base")
    talk = Talk(speaker, base, sampling_of(args), args.system)
    if sys.stdin.isatty():
        return talk.in_terminal()
    for line in _piped():
        if not talk.take(line):
            break
    return EXIT_DONE


def _piped() -> Iterator[str]:
    """The lines of standard input; UserError for one that is not in the terminal's encoding."""
    encoding = sys.stdin.encoding
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode(encoding).removeprefix("\ufeff").strip()
        except UnicodeDecodeError:
            raise UserError(
                f"standard input, line {number}: expected text in {encoding}, found other bytes; "
                f"convert it, such as by iconv -f CP932 -t {encoding}"
            ) from None


class Talk:
    """A conversation: its turns so far, and the model that answers."""

    def __init__(
        self,
        speaker: "Speaker",
        base: "Speaker | None",
        sampling: "Sampling",
        system: str | None,
    ) -> None:
        self._speaker, self._base, self._sampling = speaker, base, sampling
        self._system = system
        self.turns: list[dict[str, Any]] = []
        self._saved: set[Path] = set()

    def in_terminal(self) -> int:
        """Ask for lines until the end of input or two Ctrl-C."""
        import readline  # noqa: F401  (makes `input` edit lines and remember them)

        for stream in (sys.stdin, sys.stdout):  # what this terminal has no character for
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        print(f"{self._speaker.name}   {_HELP}", file=sys.stderr)
        while True:
            try:
                line = input("> ")
            except (EOFError, KeyboardInterrupt):
                print(file=sys.stderr)
                return EXIT_DONE
            try:
                if not self.take(line):
                    return EXIT_DONE
            except UserError as error:
                print(f"tatara: {error}", file=sys.stderr)

    def take(self, line: str) -> bool:
        """Carry out one line, a command or a question; returns False where it ends the chat.

        Raises UserError for an unknown command or argument.
        """
        first, *others = line.split(maxsplit=1) or [""]
        # An input method for Japanese writes ／ｒｅｓｅｔ, and its wide blank.
        command, rest = unicodedata.normalize("NFKC", first), "".join(others).strip()
        if not command.startswith("/") or "/" in command[1:]:
            if line.strip():
                self._ask(line.strip())
        elif command == "/reset":
            self.turns = []
        elif command == "/system":
            self._system, self.turns = rest or None, []
        elif command == "/adapter":
            self._adapter(unicodedata.normalize("NFKC", rest))
        elif command == "/save":
            self._save(Path(rest or "chat.json").expanduser())
        elif command == "/help":
            print(_HELP, file=sys.stderr)
        elif command != "/quit":
            raise UserError(f"unknown command {command}; there are {_HELP}")
        return command != "/quit"

    def _ask(self, line: str) -> None:
        asked = [*self.turns, {"role": "user", "content": line}]
        if self._base is not None:
            print("trained: ", end="", flush=True)
        answer = self._say(self._speaker, asked)
        if self._base is not None:
            print("base: ", end="", flush=True)
            before, self._base.active = self._base.active, "base"
            self._say(self._base, asked)
            self._base.active = before
        if answer.strip():
            self.turns = [*asked, {"role": "assistant", "content": answer}]

    def _say(self, speaker: "Speaker", asked: list[dict[str, Any]]) -> str:
        """Print an answer as it comes; Ctrl-C ends it."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        said, stop = "", threading.Event()
        pieces = speaker.stream([*system, *asked], self._sampling, stop)
        try:
            for piece in pieces:
                shown = piece.translate(_CONTROLS) if sys.stdout.isatty() else piece
                print(shown, end="", flush=True)
                said += piece
        except KeyboardInterrupt:
            stop.set()
            if not sys.stdin.isatty():
                raise
            for piece in pieces:
                said += piece
        print(flush=True)
        return said

    def _adapter(self, name: str) -> None:
        if name:
            self._speaker.use(name)
        held = [*self._speaker.adapters, *(["base"] if self._speaker.adapters else [])]
        marked = [f"*{item}" if item == self._speaker.active else item for item in held]
        print("adapters: " + (", ".join(marked) or "none"), file=sys.stderr)

    def _save(self, path: Path) -> None:
        system = [{"role": "system", "content": self._system}] if self._system else []
        text = json.dumps({"messages": [*system, *self.turns]}, ensure_ascii=False, indent=1)
        if path.exists() and path not in self._saved:
            raise UserError(f"/save: expected a new file, found {path} already; name another")
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"/save: expected a file to write, found {error}") from None
        self._saved.add(path)
        print(f"saved {path}", file=sys.stderr)
