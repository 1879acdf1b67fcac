"""Check the two size maxima of the house style; report medians, rooms and helpers.

    python scripts/check_house.py [FOLDER...]        (default: workloads)

No function over 80 lines, no file over 500: exit code 1 names each one that is. The number of files
beside the folders of the package, and the share of private helpers with one caller, are told and
fail nothing: whether a helper is worth its name is judged by reading it.
"""

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FUNCTION = 80
MAX_FILE = 500
SHORT = 5  # lines; a helper of so few rarely says more than its body


@dataclass(frozen=True)
class Function:
    """One function: where it stands, how long it is, and how often its file names it."""

    place: str
    name: str
    length: int
    uses: int

    @property
    def has_one_caller(self) -> bool:
        """A private function that its own file names exactly once."""
        return self.name.startswith("_") and not self.name.startswith("__") and self.uses == 1


def functions_of(path: Path) -> Iterator[Function]:
    """Every function of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    uses: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            uses[node.id] += 1
        elif isinstance(node, ast.Attribute):
            uses[node.attr] += 1
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(f"{path}:{node.lineno}", node.name, length, uses[node.name])


def main(folders: list[str]) -> int:
    """Print what is too long, and the figures."""
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    if not paths:
        print(f"expected Python files under {', '.join(folders)}, found none", file=sys.stderr)
        return 2
    files = [(len(path.read_text(encoding="utf-8").splitlines()), str(path)) for path in paths]
    functions = [function for path in paths for function in functions_of(path)]
    too_long = [(length, place, MAX_FILE) for length, place in files if length > MAX_FILE]
    for function in functions:
        if function.length > MAX_FUNCTION:
            place = f"{function.place} {function.name}"
            too_long.append((function.length, place, MAX_FUNCTION))
    for length, place, limit in too_long:
        print(
            f"{place}: expected at most {limit} lines, found {length}; split it at a natural seam"
        )
    for line in _figures(files, functions, folders):
        print(line)
    return 1 if too_long else 0


def _figures(
    files: list[tuple[int, str]], functions: list[Function], folders: list[str]
) -> Iterator[str]:
    lengths = sorted(function.length for function in functions)
    yield (
        f"{len(files)} files, median {statistics.median(length for length, _ in files):.0f} lines; "
        f"{len(lengths)} functions, median {statistics.median(lengths or [0]):.0f}, "
        f"p90 {lengths[int(len(lengths) * 0.9)] if lengths else 0}, "
        f"longest {max(lengths, default=0)}"
    )
    lonely = [function for function in functions if function.has_one_caller]
    short = sum(function.length <= SHORT for function in lonely)
    share = len(lonely) / max(1, len(functions))
    yield f"private helpers with one caller: {share:.0%} ({len(lonely)}, {short} of them short)"
    for folder in folders:
        rooms = [path for path in Path(folder).iterdir() if not path.name.startswith("__")]
        single = sum(path.suffix == ".py" for path in rooms)
        yield f"{folder}: {single} files beside {sum(path.is_dir() for path in rooms)} folders"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["workloads"]))
