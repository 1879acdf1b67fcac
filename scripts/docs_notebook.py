"""A hook of mkdocs: run the notebook of the Python API, and make a page of cells and outputs.

python scripts/docs_notebook.py     # the page alone, on standard output
"""

import ast
import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from pprint import pformat
from tempfile import TemporaryDirectory
from typing import Any

NOTEBOOK = Path("docs/examples/python-api.ipynb")
PAGE = "python-api.md"


def page(notebook: dict[str, Any]) -> str:
    """The notebook as Markdown, each code cell with what it printed and what it ended with.

    Runs the cells, in order, in one namespace. Raises what a cell raises.
    """
    parts, names = [], {"__name__": "__main__"}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        if output := _run(source, names):
            parts.append(f"```text\n{output}\n```")
    return "\n\n".join(parts) + "\n"


def _run(source: str, names: dict[str, Any]) -> str:
    """What a cell prints, and the value of its last line where that is an expression."""
    body, last = ast.parse(source).body, None
    if body and isinstance(body[-1], ast.Expr):
        last = ast.Expression(body.pop().value)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        value = None if last is None else eval(compile(last, "cell", "eval"), names)
    shown = [] if value is None else [pformat(value)]
    return "\n".join(part for part in (printed.getvalue().rstrip(), *shown) if part)


def main() -> None:
    print(page(json.loads(NOTEBOOK.read_text(encoding="utf-8"))))


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs: add the page, made in a process and an output folder of its own."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    with TemporaryDirectory() as outputs:
        env = {**os.environ, "TATARA_OUTPUTS": outputs, "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
    if done.returncode:
        raise PluginError(f"{NOTEBOOK}: a cell failed:\n{done.stderr[-3000:]}")
    files.append(File.generated(config, PAGE, content=done.stdout))
    return files


if __name__ == "__main__":
    main()
