"""The arithmetic of a run's generator: types of its products, said once and the same in both passes of a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from rdm.errors import InputError
from rdm.matching.autocast import products
from rdm.scaling.loss_scale import LossScale
from rdm.scaling.weights import Held

Precision = Literal["float32", "bfloat16", "float16"]


class Arithmetic:
    """Blocks in which a generator computes in a precision; a caller's own autocast does not reach into them.

    Args:
        device: where it computes.
        precision: "bfloat16" or "float16" by `torch.autocast`, the latter with a loss `scale`; "float32" in the types
            of its weights.
        held: how its parameters are held; those in bfloat16 compute in it.
        tf32: float32 products and convolutions of generator and encoders may drop to TF32's ten bits, which halves
            their time or better on a GPU that has it. Statistics and distances never do; without it nothing does.

    Raises:
        InputError: parameters in bfloat16 that are to compute in float32.
    """

    def __init__(self, device: torch.device, precision: Precision, held: Held, *, tf32: bool):
        if held != "float32" and precision != held:
            raise InputError(
                f"parameters in {held} compute in it; got precision {precision!r}; give precision={held!r}"
            )
        self._device, self._precision, self._tf32 = device.type, precision, tf32
        self.scale = LossScale(dynamic=precision == "float16")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A block of it."""
        low = self._precision != "float32"
        cast = torch.autocast(self._device, getattr(torch, self._precision) if low else None, enabled=low)
        with products(tf32=self._tf32), cast:
            yield
