"""Pairs of an item's and its caption's number."""

from pathlib import Path

from torch import Tensor

from rdm.api import Condition, Conditions, InputError, Law, Numbers, conditions, open_table


@conditions.register("pairs", examples=(), needs="a table on disk")
class Pairs(Numbers):
    """Pairs of an item's and its caption's number, from a table "n 2" on disk; a mapping with "item" and "id".

    Where items have several captions or captions several items, a caption comes as often as it stands in the table.

    Args:
        path: safetensors or .npy file of whole numbers.
        captions: what a generator is given beside the numbers, by the caption's number: `embeddings`.
        law: which pairs: "uniform", or probabilities, one a pair (see `labels`).

    Raises:
        InputError: no such file, no pairs of whole numbers, captions that the table of captions has not.
    """

    def __init__(self, path: str, captions: Conditions | None = None, law: Law = "uniform"):
        self.table, self.captions = open_table(Path(path)), captions
        if len(self.table.shape) != 2 or self.table.shape[1] != 2 or self.table.dtype.is_floating_point:
            raise InputError(
                f'{path} must hold whole numbers "n 2", item and caption; got {self.table.dtype} {self.table.shape}'
            )
        whole = self.table.whole()
        least, most = int(whole.min()), int(whole[:, 1].max())
        if least < 0 or (captions is not None and most >= (captions.count or most + 1)):
            known = "" if captions is None or captions.count is None else f" and captions below {captions.count}"
            raise InputError(f"{path} must hold numbers from 0{known}; got {least} and captions up to {most}")
        super().__init__(len(self.table), law)

    def read(self, drawn: Tensor) -> Condition:
        """Both numbers of these pairs, and what is read for the captions."""
        items, ids = self.table.take(drawn).long().unbind(1)
        given = {} if self.captions is None else self.captions.read(ids)
        return {**(given if isinstance(given, dict) else {"embedding": given}), "item": items, "id": ids}
