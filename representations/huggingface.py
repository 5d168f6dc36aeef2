"""Vision models of HuggingFace transformers, by name or from a folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rdm.api import InputError, Representation, images, representations, require, sizes_alone
from representations._images import Preprocess
from representations._pooling import MAP, TOKENS, pool, poolings, unknown_pooling
from representations._transformers import configured, loaded, model_file
from representations._weights import PRETRAINED, RANDOM, origin

POOLER = "pooler"
FORMS = {  # types and configurations of models that are built of their sizes alone, as in a dry run
    "facebook/webssl-dino1b-full2b-224": (
        "dinov2",
        {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
    ),
}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


@representations.register(
    "huggingface",
    examples=(
        {"model": "vit", "weights": RANDOM, "size": 32, "arguments": {**TINY, "intermediate_size": 64}},
        {
            "model": "dinov2",
            "weights": RANDOM,
            "pool": "mean",
            "size": 32,
            "arguments": {**TINY, "mlp_ratio": 2},
        },
    ),
    needs='transformers: pip install "rdm-torch[text]"',
)
def huggingface(
    model: str,
    pool: str = "cls",
    size: int | None = None,
    weights: str = PRETRAINED,
    allow_download: bool = False,
    sha256: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    arguments: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Representation:
    """Features of a vision model of transformers (Wolf et al. 2020), by its name on the hub or from a local folder.

    pool: "cls", the first token; "mean" of the patch tokens; "pooler", the model's own; "spatial", the mean of a map;
    "flatten". Size, mean and std are those of its preprocessor_config.json; without one, ImageNet's and the model's
    image size. weights: "pretrained" is read from the folder or the HuggingFace cache (fetched into it with
    `allow_download`), whose `sha256` may be demanded; "random" is untrained, and `model` then a type of model
    ("vit"), configured by `arguments`. Nothing but safetensors is read, and no code that comes with a model is run.

    Shapes: n 3 h w -> n d. Cost: one forward pass of the model.

    Raises:
        InputError: no model there or no weights; a pooling that it does not have, with those that it has.
        MismatchError: a file of another hash.
    """
    owner = f"huggingface model {model!r}"
    library = require("transformers", extra="text", owner=owner)
    known = FORMS.get(model) if sizes_alone() else None
    path = None if known or weights == RANDOM else model_file(model, weights, allow_download, sha256, owner)
    if path is not None and arguments:
        raise InputError(f'{owner}: arguments configure weights="{RANDOM}"; got {dict(arguments)!r}; leave them out')
    kind, options = known or (model, arguments or {})
    network = configured(library, kind, options, owner) if path is None else loaded(library, path.parent, owner)[0]
    own = _preprocessing(path)
    side = size or own.get("size") or getattr(network.config, "image_size", 224)
    prepare = Preprocess(side, mean or own["mean"], std or own["std"], "bicubic")
    settings = {"model": model, "pool": pool, "size": side, **origin(path)}
    module = HuggingFaceEncoder(prepare, network, pool, owner=owner)
    return Representation(name or model.rpartition("/")[2], module, settings, inputs=images())


class HuggingFaceEncoder(nn.Module):
    """Preprocessing, a vision model of transformers and a pooling."""

    def __init__(self, prepare: Preprocess, network: Any, pooling: str, *, owner: str):
        super().__init__()
        self.prepare, self.network, self.pooling, self.owner = prepare, network, pooling, owner

    def forward(self, images: Tensor) -> Tensor:
        """Images to features."""
        x = self.prepare(images)
        output = self.network(pixel_values=x)
        hidden = output.last_hidden_state
        if self.pooling == POOLER:
            if output.get("pooler_output") is None:
                raise unknown_pooling(POOLER, poolings(hidden.ndim, self._prefix(x, hidden)), self.owner)
            return output.pooler_output.flatten(1)
        return pool(hidden, self.pooling, self._prefix(x, hidden), owner=self.owner)

    def extra_repr(self) -> str:
        """What the fingerprint of an encoder must see."""
        return f"pooling={self.pooling!r}"

    def _prefix(self, x: Tensor, hidden: Tensor) -> int:
        """Tokens that are no patches: class and register tokens."""
        if hidden.ndim == MAP:
            return 0
        assert hidden.ndim == TOKENS
        patch = self.network.config.patch_size
        patch = patch[0] if isinstance(patch, list | tuple) else patch
        return hidden.shape[1] - (x.shape[2] // patch) * (x.shape[3] // patch)


def _preprocessing(path: Path | None) -> dict[str, Any]:
    """size, mean and std of a preprocessor_config.json, ImageNet's mean and std without one."""
    found: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    file = None if path is None else path.parent / "preprocessor_config.json"
    if file is None or not file.is_file():
        return found
    config = json.loads(file.read_text())
    size = config.get("crop_size") or config.get("size") or {}
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
    return {"mean": config.get("image_mean", found["mean"]), "std": config.get("image_std", found["std"]), "size": side}
