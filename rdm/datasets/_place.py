"""Where data sets lie that do not come with a package: the folder that RDM_DATA names."""

import os
from pathlib import Path

from rdm.api import InputError


def place(name: str, file: Path) -> Path:
    """The path of a data set's file.

    Raises:
        InputError: RDM_DATA is not set, or its folder does not hold the file.
    """
    folder = os.environ.get("RDM_DATA")
    path = Path(folder or "RDM_DATA") / file
    if not folder or not path.is_file():
        missing = "RDM_DATA is not set" if not folder else f"there is no {path}"
        raise InputError(
            f'data set "{name}" reads {file} in the folder that the environment variable RDM_DATA names; '
            f"{missing}; set it to a folder of data sets that holds the file, of which `rdm show {name}` says more"
        )
    return path
