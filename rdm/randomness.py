"""Random streams that are functions of a seed and a purpose, so that a resumed run draws what it would have drawn."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream(seed: int, *purpose: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose ("noise", step, rank...), independent of every other."""
    text = "/".join(map(str, (seed, *purpose)))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    return torch.Generator(device).manual_seed(number)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block on a seeded copy of torch's global random state; the caller's own state is untouched."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
