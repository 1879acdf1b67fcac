"""Named mixtures of public robot data: which datasets, by what weight, and how each is read.

All of it is data, in `mixtures.yaml`: each dataset has settings as a profile's `data` has them.
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("mixtures.yaml")


def mixtures() -> dict[str, dict[str, float]]:
    """By name: the datasets of each mixture and their weights."""
    found: dict[str, dict[str, float]] = _catalogue()["mixtures"]
    return found


def dataset_settings(name: str, root: Path) -> dict[str, Any]:
    """How a dataset is read that lies in a folder below `root`.

    Of several names its folder may have, the first that is there counts; where none is, the first.
    """
    settings = dict(_catalogue()["datasets"][name])
    folders = [root / folder for folder in settings.pop("folders", [name])]
    found = next((folder for folder in folders if folder.exists()), folders[0])
    return {"source": str(found), "name": name, **settings}


@cache
def _catalogue() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return found
