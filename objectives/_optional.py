"""Packages that only some objectives need."""

import importlib
from types import ModuleType

from rdm.api import InputError


def require(package: str, *, extra: str, user: str) -> ModuleType:
    """Import an optional package, or say which extra brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f'{user} needs the package {package}; it is not installed; pip install "rdm-torch[{extra}]"'
        ) from error
