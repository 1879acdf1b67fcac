"""A folder with one profile, and the ways to resolve it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from workloads.config.merge import Provenance, resolve
from workloads.errors import UserError

BASE = """\
workload: llm
model:
  name: owner/model
data:
  source: rows.jsonl
"""


class ProfileFolder:
    """A folder with one profile, and the ways to resolve it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "one.yaml"

    def write(self, text: str, name: str = "one.yaml") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def resolve(
        self,
        more: str = "",
        env: Mapping[str, str] | None = None,
        overrides: Sequence[str] | Mapping[str, Any] = (),
    ) -> tuple[Any, Provenance]:
        self.write(BASE + more)
        return resolve(self.path, env or {}, overrides)

    def refused(self, more: str = "", env: Any = None, overrides: Any = ()) -> str:
        with pytest.raises(UserError) as caught:
            self.resolve(more, env, overrides)
        return str(caught.value)

    def refused_file(self, text: str) -> str:
        self.write(text)
        with pytest.raises(UserError) as caught:
            resolve(self.path, {})
        return str(caught.value)
