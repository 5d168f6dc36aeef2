"""Ranks that come together for the length of a block: those that torchrun announces, or none at all."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from rdm.errors import InputError

JOINING = 600.0  # seconds that ranks wait for the last one to come

_meetings = itertools.count()  # of this process, and so of every rank: words of one are not taken for those of another


@contextmanager
def started() -> Iterator[bool]:
    """Join the process group that torchrun announces, for the length of the block; alone, do nothing.

    Gives whether it was joined here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield False
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend, store = "nccl" if torch.cuda.is_available() else "gloo", _met(JOINING)
    dist.init_process_group(
        backend, store=store, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    try:
        yield True
    finally:
        dist.destroy_process_group()


def _met(seconds: float) -> PrefixStore:
    """Where the ranks meet, once all of them are there; a signal is answered meanwhile, which torch's own wait is not.

    Raises:
        InputError: some have not come for so long.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    size, torchrun = int(os.environ["WORLD_SIZE"]), os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    master, until = os.environ["RANK"] == "0" and not torchrun, time.monotonic() + seconds
    while True:
        try:
            place = TCPStore(
                host, port, is_master=master, wait_for_workers=False, multi_tenant=True, timeout=timedelta(seconds=5)
            )
            break
        except RuntimeError:  # a port that is taken, or nobody there yet
            if master or time.monotonic() > until:
                raise
    place.set_timeout(dist.distributed_c10d.default_pg_timeout)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"rdm/attempt {attempt}, meeting {next(_meetings)}", place)
    here = store.add("ranks", 1)
    while here < size:
        if time.monotonic() > until:
            raise InputError(f"WORLD_SIZE is {size}, and {here} ranks have come in {seconds:.0f} s; start all of them")
        time.sleep(0.02)
        here = store.add("ranks", 0)
    return PrefixStore("group", store)


@contextmanager
def pretended(ranks: int) -> Iterator[None]:
    """A block in which this process is the first of so many that are not there, and gets nothing from them.

    For tensors without values, whose sizes alone matter. Of one rank, nothing is pretended.
    """
    if ranks == 1:
        yield
        return
    import torch.distributed._tools.fake_collectives  # noqa: F401  (what collectives make of such tensors)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
