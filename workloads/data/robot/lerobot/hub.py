"""Downloads a LeRobot dataset from the hub into the hub's own cache."""

import logging
from pathlib import Path

from workloads.errors import UserError

log = logging.getLogger(__name__)


def download(name: str, revision: str | None, mark: Path) -> Path:
    """Download a dataset and return the folder of its snapshot; the revision is logged.

    Raises UserError where the hub does not answer, has no such dataset, or it is not LeRobot's (no
    `mark`).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    asked = f"{name} at {revision}" if revision else name
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{asked}: expected a folder here or a dataset on the hub, found neither ({said}); "
            "check the path, the name, and HF_TOKEN for private ones"
        ) from error
    if not (folder / mark).is_file():
        raise UserError(
            f"{asked}: expected a LeRobot dataset with {mark}, found none on the hub; download "
            "other formats by hand and name their folder"
        )
    log.info("%s: %s", asked, folder)
    return folder
