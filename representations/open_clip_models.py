"""Image and text towers of open_clip, by model and tag."""

import logging
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdm.api import (
    InputError,
    Inputs,
    Representation,
    UnknownNameError,
    first_line,
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
from representations._tokenizer import BYTES, decoded
from representations._weights import PRETRAINED, RANDOM, loading, origin, untrained, url_file, weights_file

FILES = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"


@representations.register(
    "open_clip",
    examples=({"model": "ViT-S-32-alt", "weights": RANDOM, "unit": True},),
    needs='open_clip: pip install "rdm-torch[vision]"',
)
def open_clip(
    model: str,
    tag: str | None = None,
    weights: str = PRETRAINED,
    unit: bool = False,
    size: int | None = None,
    allow_download: bool = False,
    sha256: str | None = None,
    name: str | None = None,
) -> Representation:
    """Image embeddings of an open_clip model (Ilharco et al. 2021), after the projection to the common space.

    `unit=True` divides by the norm, as CMMD does. `tag` names the pretraining ("openai"), from which the preprocessing
    and the activation follow; images are resized to the model's square, without a crop. weights: "pretrained" is read
    from the cache of HuggingFace or of torch.hub (fetched there with `allow_download`), "random" is untrained, else a
    file, whose `sha256` may be demanded.

    Shapes: n 3 h w -> n d. Cost: one forward pass of the image tower.

    Raises:
        InputError: a model or tag that does not exist, with the nearest; no weights there; a size that the tower does
            not take (most have a fixed grid of positions).
        MismatchError: weights of another architecture, with the first ten tensors; a file of another hash.
    """
    network, config, path = _network(model, tag, weights, allow_download, sha256)
    side = _side(network.visual, config, size, f"open_clip model {model!r}")
    prepare = Preprocess(side, config["mean"], config["std"], "bicubic")
    module = nn.Sequential(prepare, network.visual, *([Unit()] if unit else []))
    settings = {"model": model, "tag": tag, "unit": unit, "size": side, **origin(path)}
    return Representation(name or f"open_clip {model}", module, settings, inputs=images())


@representations.register(
    "open_clip_text",
    examples=({"model": "ViT-S-32-alt", "weights": RANDOM},),
    needs='open_clip: pip install "rdm-torch[vision]"',
)
def open_clip_text(
    model: str,
    tag: str | None = None,
    weights: str = PRETRAINED,
    unit: bool = True,
    takes: Literal["tokens", "text"] = "tokens",
    allow_download: bool = False,
    sha256: str | None = None,
    name: str | None = None,
) -> Representation:
    """Text embeddings of an open_clip model; for captions, and for conditions in a joint law.

    Items are ids of `open_clip.get_tokenizer(model)`, or with takes="text" UTF-8 bytes (0 after the end), as files of
    lines are read, which that tokenizer makes ids of, cut at the model's longest. The other arguments are as for
    `open_clip`.

    Shapes: ids n t, or bytes n t -> n d. Cost: one forward pass of the text tower.
    Raises: as `open_clip`; InputError: another `takes`, or a tokenizer of transformers that is not in the cache.
    """
    network, _, path = _network(model, tag, weights, allow_download, sha256)
    context = int(network.context_length)
    network.visual = nn.Identity()
    settings = {"model": model, "tag": tag, "unit": unit, **origin(path)}
    inputs = Inputs("texts", (context,), integer=True, remedy=f"tokenise with open_clip.get_tokenizer({model!r})")
    module = nn.Sequential(TextTower(network), *([Unit()] if unit else []))
    if takes == "text":
        inputs, settings = BYTES, settings | {"takes": takes}
        module = Captions(module, _tokenizer(model, context))
    return Representation(name or f"open_clip text {model}", module, settings, inputs=inputs)


class TextTower(nn.Module):
    """Token ids to embeddings."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        """One embedding a text."""
        return self.network.encode_text(tokens)


class Captions(nn.Module):
    """Texts as bytes to embeddings, by the tokenizer of the model."""

    def __init__(self, tower: nn.Module, tokenizer: Any):
        super().__init__()
        self.tower, self.tokenizer = tower, tokenizer

    def forward(self, items: Tensor) -> Tensor:
        """One embedding a text."""
        return self.tower(self.tokenizer(decoded(items)).to(items.device))


def _tokenizer(model: str, context: int) -> Any:
    owner = f"open_clip model {model!r}"
    library = require("open_clip", extra="vision", owner=owner)
    try:
        with _quiet(), loading(owner):
            return library.get_tokenizer(model, context_length=context)
    except Exception as error:  # whatever transformers raises of what is not in its cache
        raise InputError(
            f"{owner}: its tokenizer cannot be had without the hub ({first_line(error)}); tokenize yourself, with "
            'takes="tokens"'
        ) from error


class Unit(nn.Module):
    """Rows divided by their norm."""

    def forward(self, features: Tensor) -> Tensor:
        """Unit rows."""
        return nn.functional.normalize(features, dim=1)


def _network(
    model: str, tag: str | None, weights: str, allow_download: bool, sha256: str | None
) -> tuple[Any, Mapping[str, Any], Path | None]:
    owner = f"open_clip model {model!r}"
    library = require("open_clip", extra="vision", owner=owner)
    if model not in library.list_models():  # its own alone: a prefix would make it read a folder, or the network
        raise UnknownNameError(f"open_clip knows no model {model!r}{nearest(model, library.list_models())}")
    tags = library.list_pretrained_tags_by_model(model)
    if (tag is not None or weights == PRETRAINED) and tag not in tags:
        raise UnknownNameError(f"{owner} has no tag {tag!r}{nearest(tag or '', tags) if tags else '; it has none'}")
    config = library.get_pretrained_cfg(model, tag) if tag else {}
    path = weights_file(weights, sha256, owner, lambda: _pretrained(config, allow_download, owner))

    def build() -> Any:
        with _quiet(), loading(owner):
            quick = bool(config.get("quick_gelu", False))
            return library.create_model(model, pretrained=None, force_quick_gelu=quick, pretrained_hf=False)

    try:
        network = untrained(build)
    except OSError as error:  # a text tower of transformers, whose settings are not in the cache
        raise InputError(f"{owner}: open_clip cannot build it without the hub ({first_line(error)})") from error
    if path is not None:
        _load(library, network, path, owner)
    return network, {**library.get_model_preprocess_cfg(network), **_known(config)}, path


def _side(tower: nn.Module, config: Mapping[str, Any], size: int | None, owner: str) -> int:
    """The square that images are resized to: the model's own, or another one that its tower takes."""
    own = config["size"] if isinstance(config["size"], int) else config["size"][0]
    if size is None or size == own:
        return own
    try:
        with torch.no_grad():
            tower.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        why = first_line(error)
        raise InputError(f"{owner} takes images at {own}, not at {size} ({why}); leave size out") from error
    return size


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("mean", "std") if config.get(key) is not None}


def _pretrained(config: Mapping[str, Any], allow_download: bool, owner: str) -> Path:
    if config.get("hf_hub"):
        return hub_file(config["hf_hub"].strip("/"), FILES, allow_download=allow_download, owner=owner)
    return url_file(config["url"], allow_download=allow_download, owner=owner)


def _load(library: ModuleType, network: Any, path: Path, owner: str) -> None:
    state = read_weights(path, owner)
    if mismatches(network, state):
        try:  # a publisher's file, which open_clip converts
            with loading(owner):
                library.load_checkpoint(network, str(path), strict=True, weights_only=True)
            return
        except (RuntimeError, KeyError, ValueError, AttributeError):
            pass  # named below, by the file as it is
    load_strictly(network, state, source=path, owner=owner)


@contextmanager
def _quiet() -> Any:
    """open_clip warns of a model without weights, which are loaded next."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
