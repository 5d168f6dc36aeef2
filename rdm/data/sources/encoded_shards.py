"""What `rdm encode` wrote: latents, token ids, embeddings."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rdm.api import EncodedItems, Source, sources


@sources.register("encoded_shards")
@dataclass(frozen=True)
class EncodedShards(Source):
    """A folder of `rdm encode`: items of any shape in shards, with their labels; vectors are features."""

    path: Path

    @classmethod
    def detects(cls, path: Path) -> bool:  # noqa: D102
        return (path / "encoded.json").is_file()

    @cached_property
    def items(self) -> EncodedItems:  # noqa: D102
        return EncodedItems(self.path)

    @cached_property
    def kind(self) -> str:  # type: ignore[override]
        """Vectors of floating-point numbers are features; anything else is taken as it is."""
        vectors = len(self.items.index["shape"]) == 1 and "float" in self.items.index["dtype"]
        return "features" if vectors else "tensors"

    @property
    def members(self) -> dict[str, EncodedItems]:
        """Features by the encoder's name."""
        return {self.items.index["name"]: self.items}

    def __len__(self) -> int:
        return len(self.items)

    def name(self, i: int) -> str:  # noqa: D102
        return f"{i:08d}"

    def read(self, i: int) -> np.ndarray:  # noqa: D102
        value = self.items.item(i)[0]
        return (value.float() if value.is_floating_point() else value).numpy()

    def label(self, i: int) -> int:  # noqa: D102
        return self.items.item(i)[1]
