"""DreamSim's perceptual embedding."""

import contextlib
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.api import FETCH, InputError, Representation, images, representations, require, sizes_alone
from representations._images import Preprocess
from representations._weights import PRETRAINED, loading, sha256

NOTES = {"dimension": "1792", "input": "3 x 224", "pooling": "cls", "licence": "MIT"}
CACHE = Path("~/.cache/dreamsim")
FILES = (  # all that the package looks for; it fetches where one is missing
    "dino_vitb16_pretrain.pth",
    "open_clip_vitb16_pretrain.pth.tar",
    "clip_vitb16_pretrain.pth.tar",
    "dino_vitb16_lora",
    "open_clip_vitb16_lora",
    "clip_vitb16_lora",
)


@representations.register(
    "dreamsim",
    examples=(),
    needs="dreamsim: pip install dreamsim",
    notes=NOTES,
    present=lambda: not _missing(CACHE.expanduser()),
)
def dreamsim(weights: str = PRETRAINED, allow_download: bool = False, name: str = "dreamsim") -> Representation:
    """Ensemble embedding of DreamSim (Fu et al. 2023): DINO, CLIP and OpenCLIP, tuned to human similarity.

    `weights` is the folder that the package keeps its files in, "pretrained" its own default there (fetched with
    `allow_download`). Images are resized to 224. Not run here yet: its weights were not at hand.

    Shapes: n 3 h w -> n 1792. Cost: three ViT-B passes.

    Raises:
        InputError: the package or the files are not there.
    """
    if sizes_alone():
        return Representation(name, Embedding(Sizes(name)), {"model": "sizes alone"}, inputs=images())
    folder = CACHE.expanduser() if weights == PRETRAINED else Path(weights).expanduser()
    missing = _missing(folder)
    if missing and not allow_download:
        raise InputError(
            f"{name}: no weights ({missing[0]}) in {folder}; give weights=FOLDER, or {FETCH} to fetch them there"
        )
    library = require("dreamsim", install="dreamsim", owner=name)
    with contextlib.nullcontext() if missing else loading(name):
        network, _ = library.dreamsim(pretrained=True, device="cpu", cache_dir=str(folder), normalize_embeds=True)
    settings = {"weights_sha256": {path.name: sha256(path) for path in sorted(folder.glob("*.pth"))}}
    return Representation(name, Embedding(network), settings, inputs=images())


def _missing(folder: Path) -> list[str]:
    return [file for file in FILES if not (folder / file).exists()]


class Sizes(nn.Module):
    """The three towers in their sizes, by timm: what a dry run counts, without the package and without adapters."""

    def __init__(self, owner: str):
        super().__init__()
        library = require("timm", extra="vision", owner=owner)
        clip = "vit_base_patch16_clip_224", 512  # twice: by its makers and by OpenCLIP
        towers = ("vit_base_patch16_224", 0), clip, clip
        self.towers = nn.ModuleList(library.create_model(kind, num_classes=width) for kind, width in towers)

    def embed(self, images: Tensor) -> Tensor:
        """Their embeddings side by side."""
        return torch.cat([tower(images) for tower in self.towers], 1)


class Embedding(nn.Module):
    """Resized images to the ensemble's embedding; the network normalises by itself."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.prepare, self.network = Preprocess(224), network

    def forward(self, images: Tensor) -> Tensor:
        """Images to features."""
        return self.network.embed(self.prepare(images))  # type: ignore[operator]
