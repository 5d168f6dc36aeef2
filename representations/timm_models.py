"""Vision models of timm, by name."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from rdm.api import (
    Representation,
    UnknownNameError,
    hub_file,
    images,
    load_strictly,
    mismatches,
    nearest,
    read_weights,
    representations,
    require,
)
from representations._images import Preprocess
from representations._pooling import MAP, TOKENS, Tapped, pool, poolings, unknown_pooling
from representations._weights import PRETRAINED, RANDOM, checked_arguments, loading, origin, untrained, weights_file

FILES = "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
WEIGHTS = "pretrained", "checkpoint", "cache_dir"  # beginnings of arguments by which timm looks for weights itself
HEAD, ATTENTION, LOGITS = "head", "attention", "logits"


@representations.register(
    "timm",
    examples=(
        {"model": "test_vit", "pool": "cls", "size": 32, "weights": RANDOM},
        {"model": "test_vit", "pool": "mean", "layer": "blocks.3", "size": 32, "weights": RANDOM},
        {"model": "test_vit3", "pool": "attention", "size": 32, "weights": RANDOM},
        {"model": "test_resnet", "pool": "spatial", "size": 32, "weights": RANDOM},
    ),
    needs='timm: pip install "rdm-torch[vision]"',
)
def timm(
    model: str,
    pool: str = HEAD,
    layer: str | None = None,
    size: int | None = None,
    weights: str = PRETRAINED,
    allow_download: bool = False,
    sha256: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    arguments: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Representation:
    """Features of any model of timm (Wightman 2019), by its name there, with tag.

    pool: "head", what the model's own classifier reads; "cls", the class token; "mean" of the patch tokens;
    "attention", the attention pool; "summary", the first three of several class tokens; "spatial", the mean of a map;
    "flatten", every number; "logits" of the classifier.
    Tokens and maps are those after the last block and its normalisation, or the output of the named `layer`
    ("blocks.5"). Images are resized to `size` (the model's own by default) as its configuration says, with antialias,
    and normalised; vision transformers take other sizes than their own by interpolated position embeddings and
    padding. weights: "pretrained" is read from the HuggingFace cache (fetched into it with `allow_download`), "random"
    is untrained, else a file of timm's or the publisher's tensors, whose `sha256` may be demanded. `arguments` go to
    `timm.create_model`, such as `channel_multiplier` or `pad_type`, but for those by which it would look for weights;
    mean and std replace the configuration's.

    Shapes: n 3 h w -> n d. Cost: one forward pass of the model.

    Raises:
        InputError: a model, layer or pooling that does not exist, with those that do; no weights there.
        MismatchError: weights of another architecture, with the first ten tensors; a file of another hash.
    """
    owner = f"timm model {model!r}"
    library = require("timm", extra="vision", owner=owner)
    if not library.is_model(model):
        raise UnknownNameError(
            f"timm knows no model {model!r}{nearest(model.partition('.')[0], library.list_models())}"
        )
    options = {"num_classes": 0, **checked_arguments(arguments, WEIGHTS, owner)}
    if pool == LOGITS:
        options.pop("num_classes")
    path = weights_file(weights, sha256, owner, lambda: _pretrained(library, model, allow_download, owner))
    network = _network(library, model, options, path, owner)
    config = library.data.resolve_model_data_config(network)
    side = size or config["input_size"][-1]
    how = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    prepare = Preprocess(side, mean or config["mean"], std or config["std"], how)
    module = TimmEncoder(prepare, network, pool, layer, owner=owner)
    settings = {
        "output": LOGITS if pool == LOGITS else "features",
        "model": model,
        "pool": pool,
        "layer": layer,
        "size": side,
        **origin(path),
    }
    return Representation(name or model.partition(".")[0], module, settings, inputs=images())


class TimmEncoder(nn.Module):
    """Preprocessing, a timm model and a pooling."""

    def __init__(self, prepare: Preprocess, network: Any, pooling: str, layer: str | None, *, owner: str):
        super().__init__()
        self.prepare, self.owner, self.pooling = prepare, owner, pooling
        self.prefix = int(getattr(network, "num_prefix_tokens", 0) or 0)
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"  # maps "n h w d", such as Swin's
        self.network = network if layer is None else Tapped(network, layer, owner=owner)
        if layer is None and pooling == ATTENTION and getattr(network, "attn_pool", None) is None:
            known = [HEAD, *poolings(TOKENS if self.prefix else MAP, self.prefix), LOGITS]
            raise unknown_pooling(pooling, known, owner)

    def forward(self, images: Tensor) -> Tensor:
        """Images to features."""
        x = self.prepare(images)
        if isinstance(self.network, Tapped):
            return self._pooled(self.network(x))
        if self.pooling == LOGITS:
            return self.network(x)
        features = self.network.forward_features(x)
        if self.pooling in (HEAD, ATTENTION):
            return self.network.forward_head(features, pre_logits=True).flatten(1)
        return self._pooled(features)

    def _pooled(self, features: Tensor) -> Tensor:
        if self.channels_last and features.ndim == MAP:
            features = features.movedim(-1, 1)
        return pool(features, self.pooling, self.prefix, owner=self.owner)

    def extra_repr(self) -> str:
        """What the fingerprint of an encoder must see."""
        return f"pooling={self.pooling!r}"


def _pretrained(library: ModuleType, model: str, allow_download: bool, owner: str) -> Path:
    config = library.get_pretrained_cfg(model)
    names = (config.hf_hub_filename,) if config.hf_hub_filename else FILES
    return hub_file(config.hf_hub_id or f"timm/{model}", names, allow_download=allow_download, owner=owner)


def _network(library: ModuleType, model: str, options: dict[str, Any], path: Path | None, owner: str) -> Any:
    """The model with the weights of a file, or untrained; position embeddings that adapt where it has them."""

    def build(**more: Any) -> Any:
        for flexible in ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True}, {}):
            try:
                with loading(owner):
                    return library.create_model(model, **flexible, **options, **more)
            except TypeError as error:
                if "dynamic_img" not in str(error):
                    raise
        raise AssertionError("the last attempt passes no such argument")

    network = untrained(build)
    if path is None:
        return network
    state = read_weights(path, owner)
    if options.get("num_classes") == 0:
        head = f"{network.default_cfg['classifier']}."
        state = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
    if wrong := mismatches(network, state):
        try:  # a publisher's file, which timm converts
            return build(pretrained=True, pretrained_cfg_overlay={"file": str(path)})
        except (RuntimeError, KeyError, ValueError, AttributeError):
            assert wrong  # of the file as it is
    load_strictly(network, state, source=path, owner=owner)
    return network
