"""Check the two size maxima of the house style and report the medians.

    python scripts/check_house.py [FOLDER...]        (default: workloads)

No function over 80 lines, no file over 500: exit code 1 names each one that is.
"""

import ast
import statistics
import sys
from pathlib import Path

MAX_FUNCTION = 80
MAX_FILE = 500


def functions_of(path: Path) -> list[tuple[int, str]]:
    """Length in lines and place of every function of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def main(folders: list[str]) -> int:
    """Print what is too long and the medians."""
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    if not paths:
        print(f"expected Python files under {', '.join(folders)}, found none", file=sys.stderr)
        return 2
    files = [(len(path.read_text(encoding="utf-8").splitlines()), str(path)) for path in paths]
    functions = [function for path in paths for function in functions_of(path)]
    too_long = [(length, place, MAX_FILE) for length, place in files if length > MAX_FILE]
    too_long += [
        (length, place, MAX_FUNCTION) for length, place in functions if length > MAX_FUNCTION
    ]
    for length, place, limit in too_long:
        print(
            f"{place}: expected at most {limit} lines, found {length}; split it at a natural seam"
        )
    lengths = sorted(length for length, _ in functions)
    print(
        f"{len(files)} files, median {statistics.median(length for length, _ in files):.0f} lines; "
        f"{len(lengths)} functions, median {statistics.median(lengths or [0]):.0f}, "
        f"p90 {lengths[int(len(lengths) * 0.9)] if lengths else 0}, "
        f"longest {max(lengths, default=0)}"
    )
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["workloads"]))
