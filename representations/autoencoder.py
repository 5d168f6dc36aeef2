"""Latents of an autoencoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rdm.api import InputError, Representation, hub_file, images, networks, representations, require, sizes_alone
from representations._images import Preprocess
from representations._weights import PRETRAINED, RANDOM, loading, local_file, origin, untrained

FILE = "diffusion_pytorch_model.safetensors"
FORMS = {  # configurations of autoencoders that are built of their sizes alone, as in a dry run
    "black-forest-labs/FLUX.1-schnell": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
TINY = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "latent_channels": 4,
}


@representations.register(
    "autoencoder",
    examples=({"model": "tiny", "weights": RANDOM, "size": 32, "patch": 4, "arguments": TINY},),
    needs='diffusers: pip install "rdm-torch[latents]"',
)
def autoencoder(
    model: str,
    size: int = 256,
    patch: int = 4,
    subfolder: str | None = None,
    weights: str = PRETRAINED,
    allow_download: bool = False,
    sha256: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    name: str = "autoencoder",
) -> Representation:
    """Posterior means of a diffusers AutoencoderKL (Rombach et al. 2022), averaged over patches and flattened.

    Images are resized to `size` and mapped to [-1, 1]; the latent "c h w" is averaged over `patch` x `patch` squares.
    iRDM's judge `flux_vae` is size 256, patch 4: 16 x 8 x 8 = 1,024 numbers. `model` is a folder, or a name on the hub
    with the `subfolder` of its autoencoder ("vae"). weights: "pretrained" is read from the folder or the HuggingFace
    cache (fetched into it with `allow_download`), whose `sha256` may be demanded; "random" is untrained, configured by
    `arguments`.

    Shapes: n 3 h w -> n (c h/patch w/patch). Cost: one pass of the encoder.

    Raises:
        InputError: no autoencoder there; a patch that does not divide the latent's side.
        MismatchError: a file of another hash.
    """
    owner = f"autoencoder {model!r}"
    library = require("diffusers", extra="latents", owner=owner).AutoencoderKL
    path, known = None, FORMS.get(model) if sizes_alone() else None
    if known or weights == RANDOM:
        with loading(owner):
            network = untrained(lambda: library(**(known or arguments or {})))
    else:
        path = _file(model, subfolder, allow_download, sha256, owner)
        with loading(owner):
            network = library.from_pretrained(path.parent, local_files_only=True, use_safetensors=True)
    network.decoder, network.post_quant_conv = None, None
    module = LatentEncoder(Preprocess(size, (0.5,), (0.5,), "bicubic"), network, patch)
    latent = size // 2 ** (len(network.config["block_out_channels"]) - 1)
    if patch < 1 or latent % patch:
        raise InputError(f"{owner}: patch must divide the latent's side {latent}; got {patch}")
    settings = {"model": model, "size": size, "patch": patch, **origin(path)}
    return Representation(name, module, settings, inputs=images())


@networks.register("autoencoder_latents", examples=(), needs='diffusers: pip install "rdm-torch[latents]"')
class AutoencoderLatents(nn.Module):
    """Latents "c h w" of a diffusers AutoencoderKL, for `rdm encode` and flows of latents: posterior means.

    Arguments as of the representation `autoencoder`. Shapes: images n 3 size size in [0, 1] -> latents n c h w.
    """

    def __init__(
        self,
        model: str,
        size: int = 256,
        subfolder: str | None = None,
        weights: str = PRETRAINED,
        allow_download: bool = False,
        sha256: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        held = autoencoder(model, size, 1, subfolder, weights, allow_download, sha256, arguments).module
        assert isinstance(held, LatentEncoder)
        self.held = held

    def encode(self, images: Tensor) -> Tensor:
        """Images to latents."""
        return self.held.network.encode(self.held.prepare(images)).latent_dist.mean

    def forward(self, images: Tensor) -> Tensor:
        """Images to latents."""
        return self.encode(images)


class LatentEncoder(nn.Module):
    """Preprocessing, the encoder, and patch means of the posterior's mean."""

    def __init__(self, prepare: Preprocess, network: Any, patch: int):
        super().__init__()
        self.prepare, self.network, self.patch = prepare, network, patch

    def forward(self, images: Tensor) -> Tensor:
        """Images to features."""
        latent = self.network.encode(self.prepare(images)).latent_dist.mean
        return nn.functional.avg_pool2d(latent, self.patch).flatten(1)


def _file(model: str, subfolder: str | None, allow_download: bool, sha256: str | None, owner: str) -> Path:
    folder = Path(model).expanduser() / (subfolder or "")
    if folder.is_dir():
        return local_file(str(folder / FILE), sha256, owner)
    prefix = f"{subfolder}/" if subfolder else ""
    path = hub_file(model, (prefix + FILE,), allow_download=allow_download, owner=owner)
    hub_file(model, (f"{prefix}config.json",), allow_download=allow_download, owner=owner)
    return local_file(str(path), sha256, owner)
