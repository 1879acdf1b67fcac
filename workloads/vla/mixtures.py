"""Named mixtures of public robot data: datasets, their weights, and settings to read each.

They are listed in `mixtures.yaml`; each dataset has settings of a profile's `data` section.
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("mixtures.yaml")


def mixtures() -> dict[str, dict[str, float]]:
    """For each mixture by name, its datasets and their weights."""
    found: dict[str, dict[str, float]] = _catalogue()["mixtures"]
    return found


def dataset_settings(name: str, root: Path) -> dict[str, Any]:
    """Settings to read a dataset in a folder below `root`.

    Of several names for its folder, the first that exists counts, or else the first.
    """
    settings = dict(_catalogue()["datasets"][name])
    folders = [root / folder for folder in settings.pop("folders", [name])]
    found = next((folder for folder in folders if folder.exists()), folders[0])
    return {"source": str(found), "name": name, **settings}


@cache
def _catalogue() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return found
