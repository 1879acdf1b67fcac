"""The parser of `tatara`: commands that load their module when they are chosen, and mistakes told
in one sentence."""

from __future__ import annotations

import argparse
import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workloads.errors import UserError, did_you_mean

TYPE_CHECKING = False  # the module typing would be a tenth of the time of `tatara --help`
if TYPE_CHECKING:
    from typing import Any, NoReturn

_OPTION = re.compile(r"--?[A-Za-z]")
_SETTING = re.compile(r"[A-Za-z_][\w.]*=")
# command → (module with `add_arguments(parser)` and `main`, one line of help)
Commands = Mapping[str, tuple[str, str]]
# Makes `main(args, words)` of a module's own main.
Wrapper = Callable[[Callable[..., int]], Callable[[argparse.Namespace, Sequence[str]], int]]


class HelpFormatter(argparse.HelpFormatter):
    """argparse's own, which would import shutil to learn how wide the terminal is."""

    def __init__(self, prog: str) -> None:
        try:
            columns = os.environ.get("COLUMNS", "0")
            width = int(columns if columns.isdecimal() else 0) or os.get_terminal_size().columns
        except OSError:
            width = 80
        super().__init__(prog, width=max(width, 40) - 2)


class UnwrappedHelpFormatter(HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Description and epilog stay as they are written."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose arguments come from `module` once they are needed."""

    def __init__(
        self, *args: Any, module: str = "", wrap: Wrapper | None = None, **settings: Any
    ) -> None:
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **settings)
        self._module, self._wrap = module, wrap
        self._commands: argparse._SubParsersAction[CommandParser] | None = None
        self._given: list[str] = []  # to find the option that a missing argument hides

    def load(self) -> None:
        """Take the module's arguments, at the first call."""
        if self._module:
            module = importlib.import_module(self._module)
            self._module = ""
            self.description = module.__doc__
            if hasattr(module, "main"):
                self.set_defaults(main=self._wrap(module.main) if self._wrap else module.main)
            module.add_arguments(self)

    def command(self, name: str) -> CommandParser:
        """The parser of a command below this one, with its arguments."""
        assert self._commands is not None
        parser = self._commands.choices[name]
        parser.load()
        return parser

    def chosen(self, arguments: Sequence[str]) -> CommandParser:
        """The parser of the command that arguments begin with."""
        known = self._commands.choices if self._commands is not None else {}
        return (
            known[arguments[0]].chosen(arguments[1:])
            if arguments[:1] and arguments[0] in known
            else self
        )

    def refuse_misspelt(self, words: Sequence[str]) -> None:
        """Raise UserError for a flag that is no setting and nearly one of the options here."""
        import difflib

        from workloads.config.merge import CONTRACT, SHORT_NAMES

        for name in (word.partition("=")[0] for word in words if word.startswith("--")):
            bare = name[2:].replace("-", "_").upper()
            if "." in name or bare in SHORT_NAMES or bare in CONTRACT:
                continue
            options = [option for option in self._option_string_actions if option.startswith("--")]
            for near in difflib.get_close_matches(name, options, n=1, cutoff=0.75):
                raise UserError(f"{self._place()}unknown option {name!r}; did you mean {near!r}?")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.load()
        self._given = list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError in place of a usage page on stderr."""
        names = (word.partition("=")[0] for word in self._given if _OPTION.match(word))
        unknown = [name for name in names if name not in self._option_string_actions]
        if unknown and "required" in message:
            self.refuse_misspelt(unknown)
            message = f"unknown option {unknown[0]!r}"
        raise UserError(f"{self._place()}{message}; see {self.prog} --help")

    def _place(self) -> str:
        """The command that a message is about; `tatara` itself starts each message anyway."""
        return f"{self.prog.partition(' ')[2]}: " if " " in self.prog else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # The one hook of argparse (3.11, 3.12) between a wrong choice and its message.
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            name = (action.option_strings or [action.dest])[0]
            near = did_you_mean(value, known)
            raise UserError(f"{self._place()}unknown {name} {value!r}; {near}")


def add_commands(
    parser: CommandParser, commands: Commands, name: str, wrap: Wrapper | None = None
) -> None:
    """Commands below `parser`, each listed with its line; `name` is what messages call one."""
    below = parser.add_subparsers(
        metavar=name,
        dest=name.lower(),
        required=True,
        parser_class=CommandParser,
        title="commands",
        help=f"what to do; `{parser.prog} {name} --help` has more on each",
    )
    for command, (module, text) in commands.items():
        below.add_parser(command, help=text, module=module, wrap=wrap)
    parser._commands = below


def load_all(parser: CommandParser) -> CommandParser:
    """The parser with the arguments of every command: for completion and the reference page."""
    parser.load()
    if parser._commands is not None:
        for below in parser._commands.choices.values():
            load_all(below)
    return parser


class PrintVersion(argparse.Action):
    """`--version`: the installed version, looked up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str = "") -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('tatara')}")
        parser.exit()


class PrintCompletion(argparse.Action):
    """`--print-completion bash|zsh|fish|tcsh`: a script for the shell, made by shtab."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str = "") -> None:
        shells = ("bash", "zsh", "fish", "tcsh")
        super().__init__(option_strings, argparse.SUPPRESS, choices=shells, help=help)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, shell: object, *_: object
    ) -> None:
        import shtab

        assert isinstance(parser, CommandParser)
        print(shtab.complete(_completing_names(load_all(parser)), str(shell)))
        parser.exit()


# What prints the names of profiles, and those of runs, in a shell.
_PROFILES = "ls profiles profiles/recipes 2>/dev/null | sed -n 's/[.]yaml$//p'"
_RUNS = "echo latest; cd ${TATARA_OUTPUTS:-outputs} 2>/dev/null && ls -d * */2* 2>/dev/null"


def _completing_names(parser: CommandParser) -> CommandParser:
    """Profiles and runs are completed by name or path, other paths as paths.

    The metavar or the type of an argument tells which it is.
    """
    import shtab

    for action in parser._actions:
        metavar = str(action.metavar or "")
        if "PROFILE" in metavar:
            action.complete = _names_or_files("profile", _PROFILES)  # type: ignore[attr-defined]
        elif "RUN" in metavar:
            action.complete = _names_or_files("run", _RUNS)  # type: ignore[attr-defined]
        elif action.type is Path or "DIR" in metavar or "FILE" in metavar:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    if parser._commands is not None:
        for below in parser._commands.choices.values():
            _completing_names(below)
    return parser


def _names_or_files(what: str, command: str) -> dict[str, Any]:
    """A completion for bash and zsh by what a command prints, and by paths; else by paths alone."""
    import shtab

    function = f"_tatara_{what}_files"  # shtab marks what has _file in its name as file names
    bodies = {
        # Where no name begins so, bash itself goes on with files.
        "bash": f'compgen -W "$({command})" -- "$1"; [[ $1 != */* ]] || compgen -f -- "$1"',
        "zsh": f"compadd -- $({command}); _files",
    }
    preamble = {shell: f"{function}() {{\n  {body}\n}}" for shell, body in bodies.items()}
    return {**shtab.FILE, "bash": function, "zsh": function, "preamble": preamble}


def split_settings(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The arguments that `parser` knows, and the settings of the profile, each in their order.

    A flag that the parser does not know is a setting; the word after it is its value, unless that
    word can only be the PROFILE.
    """
    positional: list[str] = []
    options: list[str] = []
    settings: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        option = parser._option_string_actions.get(argument.partition("=")[0])
        if option is not None:
            options.append(argument)
            # One that needs a value takes the next word, also one such as train.seed=1,2.
            needs = option.nargs is None and bool(left) and not left[0].startswith("--")
            may = option.nargs != 0 and _is_value(left, positional)
            if "=" not in argument and (needs or may):
                options.append(left.pop(0))
        elif argument.startswith("--"):
            settings.append(argument)
            if "=" not in argument and _is_value(left, positional):
                settings.append(left.pop(0))
        elif _SETTING.match(argument):
            settings.append(argument)
        else:
            positional.append(argument)
    return [*positional, *options], settings


def _is_value(left: Sequence[str], positional: Sequence[str]) -> bool:
    """Whether the next word belongs to the flag before it."""
    if not left or left[0].startswith("--") or "=" in left[0]:
        return False
    # The only word that can be the profile is no value.
    return bool(positional) or not is_profile(left[0]) or any(map(is_profile, left[1:]))


def is_profile(word: str) -> bool:
    """Whether a word names a profile: a YAML file, or one in profiles/ by its name."""
    folders = (Path("profiles"), Path("profiles/recipes"))
    return word.endswith((".yaml", ".yml")) or any(
        (folder / f"{word}.yaml").is_file() for folder in folders
    )
