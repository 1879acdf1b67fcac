"""Optional packages of single data formats, imported when such data is opened."""

import importlib
from typing import Any

from workloads.errors import UserError


def imported(module: str, extra: str, source: str) -> Any:
    """The module of an optional package.

    source: the file that needs it. Raises UserError, naming the extra that installs the package,
    where it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{source}: expected the package {module.partition('.')[0]} to read it, found none "
            f"({error}); the vla image has it, elsewhere: pip install 'tatara[{extra}]'"
        ) from error
