"""Optional packages, imported when an encoder needs them."""

import importlib
import sys
import warnings
from types import ModuleType

import torch

from rdm.api import InputError

OPERATORS = "nms", "qnms"
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def require(package: str, *, owner: str, extra: str = "", install: str = "") -> ModuleType:
    """Import a package, or say in one line which extra of ours, or what to `install`, brings it."""
    if package in ("torchvision", "timm", "open_clip", "transformers", "diffusers"):
        _mend_torchvision()
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(f'{owner} needs {error.name}; pip install "{install or f"rdm-torch[{extra}]"}"') from error


def _mend_torchvision() -> None:
    """Let torchvision be imported beside a torch of another build.

    A torchvision wheel built for CUDA cannot load its extension beside a CPU torch, and then stops at its own import
    since the operators that it describes do not exist; timm and open_clip fall with it. Declaring the two operators
    mends the import: networks and transforms work, the operators themselves do not. They must not be declared
    beforehand, since a loaded extension declares them itself.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in OPERATORS:
            torch.library.define(f"torchvision::{operator}", SIGNATURE)
        importlib.import_module("torchvision")
        warnings.warn(
            "torchvision's compiled operators do not fit this torch; encoders work without them", stacklevel=3
        )
