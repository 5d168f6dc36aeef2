"""Vision models of torchvision, by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rdm.api import (
    InputError,
    Representation,
    UnknownNameError,
    images,
    load_strictly,
    nearest,
    read_weights,
    representations,
    require,
)
from representations._images import Preprocess, Resize
from representations._pooling import Tapped, pool, unknown_pooling
from representations._weights import (
    PRETRAINED,
    RANDOM,
    checked_arguments,
    loading,
    origin,
    untrained,
    url_file,
    weights_file,
)

HEAD, LOGITS = "head", "logits"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@representations.register(
    "torchvision",
    examples=(
        {"model": "squeezenet1_1", "layer": "features", "pool": "spatial", "size": 64, "weights": RANDOM},
        {"model": "resnet18", "size": 64, "weights": RANDOM},
    ),
    needs='torchvision: pip install "rdm-torch[vision]"',
)
def torchvision(
    model: str,
    pool: str = HEAD,
    layer: str | None = None,
    size: int = 224,
    weights: str = PRETRAINED,
    allow_download: bool = False,
    sha256: str | None = None,
    mean: tuple[float, ...] = IMAGENET[0],
    std: tuple[float, ...] = IMAGENET[1],
    bgr: bool = False,
    resize: Resize = "bilinear",
    arguments: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Representation:
    """Features of a classification model of torchvision, by its name there.

    pool: "head", what the last linear layer reads; "logits"; with a named `layer`, "spatial" or "flatten" of a map,
    "mean" or "flatten" of tokens. weights: "pretrained" is torchvision's default file in torch.hub's folder (fetched
    there with `allow_download`, its hash checked), "random" is untrained, else a file whose `sha256` may be demanded.
    Images are resized to `size` without a crop and normalised with mean and std, of BGR channels with `bgr`.

    Shapes: n 3 h w -> n d. Cost: one forward pass of the model.

    Raises:
        InputError: a model, layer or pooling that does not exist; no weights there.
        MismatchError: weights of another architecture, with the first ten tensors; a file of another hash.
    """
    owner = f"torchvision model {model!r}"
    models = require("torchvision", extra="vision", owner=owner).models
    known = models.list_models(module=models)
    if model not in known:
        raise UnknownNameError(f"torchvision knows no classification model {model!r}{nearest(model, known)}")
    options = checked_arguments(arguments, ("pretrained", "weights"), owner)
    with loading(owner):
        network = untrained(lambda: models.get_model(model, weights=None, **options))

    def pretrained() -> Path:
        return url_file(models.get_model_weights(model).DEFAULT.url, allow_download=allow_download, owner=owner)

    path = weights_file(weights, sha256, owner, pretrained)
    if path is not None:
        load_strictly(network, read_weights(path, owner), source=path, owner=owner)
    module = TorchvisionEncoder(Preprocess(size, mean, std, resize, bgr=bgr), network, pool, layer, owner=owner)
    settings = {
        "output": LOGITS if pool == LOGITS else "features",
        "model": model,
        "pool": pool,
        "layer": layer,
        "size": size,
        **origin(path),
    }
    return Representation(name or model, module, settings, inputs=images())


class TorchvisionEncoder(nn.Module):
    """Preprocessing, a torchvision model and a pooling."""

    def __init__(self, prepare: Preprocess, network: nn.Module, pooling: str, layer: str | None, *, owner: str):
        super().__init__()
        self.prepare, self.pooling, self.owner = prepare, pooling, owner
        if layer is None and pooling not in (HEAD, LOGITS):
            raise unknown_pooling(pooling, [HEAD, LOGITS, "spatial, mean or flatten of a named layer"], owner)
        self.network = network if layer is None else Tapped(network, layer, owner=owner)
        if layer is None and pooling == HEAD:
            _drop_head(network, owner)

    def forward(self, images: Tensor) -> Tensor:
        """Images to features."""
        features = self.network(self.prepare(images))
        return features if self.pooling in (HEAD, LOGITS) else pool(features, self.pooling, 0, owner=self.owner)

    def extra_repr(self) -> str:
        """What the fingerprint of an encoder must see."""
        return f"pooling={self.pooling!r}"


def _drop_head(network: nn.Module, owner: str) -> None:
    """Put an identity in the place of the last linear layer."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f'{owner} has no linear head; name a layer, such as layer="features" with pool="spatial"')
    parent, _, child = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
