"""Items of your own, read from disk while they are used."""

from typing import Literal

from rdm.api import Count, Stored, Workers, datasets


@datasets.register("files", needs="a path")
def files(
    path: str,
    size: Count | None = None,
    channels: Literal[1, 3] | None = None,
    workers: Workers = 2,
    skip_broken: bool = False,
) -> Stored:
    """Pictures, sound, latents or features at a path, in any form that `rdm reference` reads; of any size.

    Args:
        path: a folder or file.
        size: crop pictures to this side, cut or pad sound to these samples; None for items that are equal already.
        channels: colour of all pictures; None for the first one's.
        workers: processes that read ahead; 0 for none.
        skip_broken: leave out items that cannot be read, with a warning, instead of ending there.
    """
    return Stored.open(path, size, channels, workers, skip_broken)
