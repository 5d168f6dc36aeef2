"""Peer packages, some of which import torchvision: it is mended first (see `representations._optional`)."""

import warnings
from types import ModuleType

import pytest

from rdm.api import require
from rdm.errors import InputError


def peer(name: str) -> ModuleType:
    """Import a peer, or skip the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            require("torchvision", extra="vision", owner=name)
        except InputError as error:
            pytest.skip(str(error))
        return pytest.importorskip(name, exc_type=ImportError)
