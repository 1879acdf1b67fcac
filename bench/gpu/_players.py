"""Sides of a benchmark on a GPU, each in a process of its own, which take turns."""

import contextlib
import gc
import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch


@dataclass
class Player:
    """A side's process and its turns; `problem` is why it has none."""

    name: str
    process: multiprocessing.process.BaseProcess
    line: Connection
    turns: list[Any] = field(default_factory=list)
    problem: str = ""

    def play(self) -> Any:
        """A turn's figures, None where it could not be played."""
        try:
            self.line.send(True)
            answer = self.line.recv()
        except (EOFError, OSError):
            self.process.join(60)
            answer = f"its process ended with {self.process.exitcode}"
        if isinstance(answer, str):
            self.problem = answer
            return None
        return answer

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self.line.send(False)
        self.process.join(60)


def start(name: str, take_turn: Callable[[], Any], *, has_workers: bool = False) -> Player:
    """A side's process, waiting for its turns. `take_turn` is sent there, so that it must be a
    function of a module; has_workers: it starts processes itself."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, take_turn), daemon=not has_workers)
    process.start()
    return Player(name, process, mine)


def _serve(line: Connection, take_turn: Callable[[], Any]) -> None:
    """A turn for every word, until the word is no; the reason where one could not be played."""
    while line.recv():
        try:
            answer = take_turn()
        except torch.OutOfMemoryError:
            answer = "out of memory"
        except Exception as error:  # a side that fails costs only itself
            traceback.print_exc()
            answer = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        line.send(answer)


def play_around(
    players: Sequence[Player],
    assert_same: Callable[[dict[str, Any]], None],
    look: Callable[[dict[str, list[Any]]], None],
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """A-B-A: the first side, each other one, and the first again; all sides are ended.

    Gives the turns by the name of the side, and the problems of those that had some. The figures of
    the sides' first turns are compared once all have played. look: is shown the turns so far.
    """
    try:
        for player in [*players, players[0]]:
            if player is players[0] and player.turns:
                assert_same({each.name: each.turns[0] for each in players if each.turns})
            if not player.problem and (turn := player.play()) is not None:
                player.turns.append(turn)
                look({each.name: each.turns for each in players})
    finally:
        for player in players:
            player.end()
    problems = {player.name: player.problem for player in players if player.problem}
    return {player.name: player.turns for player in players}, problems


def play(
    players: Sequence[Player],
    rounds: int,
    assert_same: Callable[[dict[str, Any]], None],
    look: Callable[[dict[str, list[Any]]], None] = lambda turns: None,
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """A first turn each, whose figures are compared, then `rounds` in turns; all sides are ended.

    Gives the turns by the name of the side, and the problems of those that had some. look: is shown
    the turns so far after each.
    """
    try:
        first = {player.name: player.play() for player in players}
        assert_same({name: turn for name, turn in first.items() if turn is not None})
        for _ in range(rounds):
            for player in players:
                if not player.problem and (turn := player.play()) is not None:
                    player.turns.append(turn)
                    look({player.name: player.turns for player in players})
    finally:
        for player in players:
            player.end()
    problems = {player.name: player.problem for player in players if player.problem}
    return {player.name: player.turns for player in players}, problems
