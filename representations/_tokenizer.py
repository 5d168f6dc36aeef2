"""Texts as UTF-8 bytes, which is how a file of lines comes, to the ids of a model's own tokenizer."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.api import InputError, Inputs, first_line, require

BYTES = Inputs(
    "texts", ("bytes",), 0.0, 255.0, integer=True, remedy="give UTF-8 bytes as whole numbers, 0 after the end"
)


def decoded(items: Tensor) -> list[str]:
    """Texts of bytes "n length", 0 after the end; what is no UTF-8 is shown as such.

    >>> decoded(torch.tensor([[104, 105, 0], [195, 164, 33]]))
    ['hi', 'ä!']
    """
    rows = items.to("cpu", torch.uint8).numpy()
    return [row.tobytes().rstrip(b"\0").decode("utf-8", "replace") for row in rows]


class Tokenized(nn.Module):
    """A model of token ids as one of texts, by the `tokenizer.json` of its folder, which is data alone."""

    def __init__(self, network: nn.Module, folder: Path, padding: int, longest: int | None, owner: str):
        super().__init__()
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InputError(f'{owner}: takes="text" needs {file}; there is none; tokenize yourself, or take another')
        library = require("tokenizers", extra="text", owner=owner)
        try:
            self.tokenizer = library.Tokenizer.from_file(str(file))
        except Exception as error:  # whatever the library raises
            raise InputError(f"{owner}: {file} cannot be read ({first_line(error)})") from error
        self.tokenizer.no_padding()
        if longest is not None:
            self.tokenizer.enable_truncation(longest)
        self.network, self.padding = network, padding
        self.sha256 = hashlib.sha256(file.read_bytes()).hexdigest()

    def forward(self, items: Tensor) -> Tensor:
        """Features of the texts, each cut at the model's longest."""
        found = [each.ids or [self.padding] for each in self.tokenizer.encode_batch(decoded(items))]
        rows = [torch.tensor(ids, device=items.device) for ids in found]
        return self.network(nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding))

    def extra_repr(self) -> str:
        """What the fingerprint of an encoder must see."""
        return f"tokenizer={self.sha256}"
