"""Reading and encoding beside the encoders alone; memory of `rdm reference` over 1,000 and 50,000 items."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rdm.data.items import Items, first_item
from rdm.data.source import Form, open_source
from rdm.judging.samples import encode
from rdm.matching.representation import Battery
from rdm.references.measure import Encoders
from rdm.registry import representations


def run(device: str) -> None:
    """Both; the second on the CPU only, where the process's peak is that of its memory."""
    with tempfile.TemporaryDirectory() as folder:
        features(Path(folder), device)
        if device == "cpu":
            memory(Path(folder))


def features(folder: Path, device: str, *, n: int = 256, side: int = 160, repeats: int = 3) -> None:
    """Images a second from a file to features, the network's own pass over a tensor beside."""
    widths = (0.5, 0.25) if device == "cpu" else (1.0, 0.75, 0.5)
    members = [
        representations.build("mobilenet", weights="random", width=w, size=side, name=f"mobilenet {w}") for w in widths
    ]
    encoders = Encoders(Battery(members).to(device), device=torch.device(device))
    np.save(folder / "pictures.npy", np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8))
    source = open_source(folder / "pictures.npy")
    items = Items([(source, False)], Form(), first_item(source, Form()), size=32)
    images = torch.stack([items.form.item(source, i).value for i in range(n)]).to(device)
    times: dict[str, list[float]] = {"bare": [], "encode": []}
    for _ in range(repeats):
        times["bare"].append(seconds(lambda: bare(encoders, images), device))
        times["encode"].append(seconds(lambda: encode(items, encoders), device))
    alone, whole = (min(times[name]) for name in ("bare", "encode"))
    print(f"\n{n} pictures of {side} x {side} through {', '.join(m.name for m in members)}, batches of 32")
    print(f"{'encoders alone, from a tensor':34}{n / alone:9.1f} images/s")
    print(f"{'rdm evaluate, from a file':34}{n / whole:9.1f} images/s")
    print(f"{'ratio (bar 0.9)':34}{alone / whole:9.3f}")


def bare(encoders: Encoders, images: torch.Tensor) -> None:
    """The encoders' forward passes."""
    with torch.no_grad():
        for batch in images.split(32):
            for member in encoders.members:
                assert member.module is not None
                member.module(batch)


def seconds(work, device: str) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def memory(folder: Path) -> None:
    """Peak resident memory of a process of `rdm reference`, kept samples equal."""
    print("\nrdm reference, battery untrained, pictures of 8 x 8, --sample 1000")
    for n in (1_000, 50_000):
        data = folder / f"{n}.npy"
        np.save(data, np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8))
        arguments = [
            "reference",
            data,
            "--battery",
            "untrained",
            "--sample",
            "1000",
            "--out",
            folder / f"{n}.safetensors",
        ]
        command = [sys.executable, "-m", "rdm", *map(str, arguments)]
        began = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"{' '.join(command)} failed")
        print(f"{f'{n} items':34}{time.perf_counter() - began:9.1f} s{used.ru_maxrss / 1024:17.0f} MiB")
