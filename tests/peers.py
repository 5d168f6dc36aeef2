"""Peer packages that import torchvision, whose import fails beside another build of torch until two operators exist."""

import importlib
import sys
import warnings
from types import ModuleType

import pytest
import torch


def peer(name: str) -> ModuleType:
    """Import a peer, or skip the test; a torchvision of another build than torch's is given its missing operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _repair_torchvision()
        return pytest.importorskip(name, exc_type=ImportError)


def _repair_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        for loaded in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[loaded]
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                torch.library.define(
                    f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
        importlib.import_module("torchvision")
