"""Generators of latents: a frozen decoder of diffusers behind them, differentiable in slices."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rdm.api import FlowGenerator, InputError, confined, hub_file, require, seeded, sizes_alone

FILE = "diffusion_pytorch_model.safetensors"


class Vae(NamedTuple):
    """A public autoencoder: class of diffusers, repository, configuration, and statistics of its latents by channel."""

    model: str
    repository: str
    subfolder: str
    config: dict[str, Any]
    mean: tuple[float, ...]
    scale: tuple[float, ...]


SD_VAE = Vae(
    "AutoencoderKL",
    "stabilityai/sd-vae-ft-mse",
    "",
    {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 256,
    },
    (0.0,),
    (1 / 0.18215,),
)


class Latents(FlowGenerator):
    """What generators of latents share: `decode` by an autoencoder that is no part of the model's state.

    The decoder follows the model to devices, but is not among its modules: not in `parameters` or `state_dict`, never
    in training mode, and shared by copies of the model. Latents are decoded `slices` at a time, and each slice is
    decoded again in the backward pass, so that the memory is one slice's.
    """

    vae: Vae
    slices: int

    def open_decoder(self, decoder: str | None, *, trained: bool, slices: int) -> None:
        """Build the decoder: "pretrained", "random", "none", or a folder; None is "pretrained" for a trained model."""
        chosen = decoder or ("pretrained" if trained else "random")
        self.slices = slices
        self._decoder = None if chosen == "none" else _Unregistered(_autoencoder(self.vae, chosen))

    @property
    def behind(self) -> list[nn.Module]:
        """The decoder."""
        return [] if self._decoder is None else [self._decoder.module]

    def decode(self, x: Tensor) -> Tensor:
        """Pictures of latents."""
        if self._decoder is None:
            return super().decode(x)
        parts = [checkpoint(self._pictures, part, use_reentrant=False) for part in x.split(self.slices)]
        return super().decode(torch.cat(parts))  # type: ignore[arg-type]

    def latents(self, x: Tensor) -> Tensor:
        """The autoencoder's own latents of the model's."""
        mean, scale = self._statistics(x)
        return x * scale + mean

    def encode(self, items: Tensor) -> Tensor:
        """The model's latents of the autoencoder's own, which are the items that it is trained on."""
        mean, scale = self._statistics(items)
        return (items - mean) / scale

    def _statistics(self, x: Tensor) -> list[Tensor]:
        return [torch.tensor(v, device=x.device, dtype=x.dtype).view(-1, 1, 1) for v in self.vae[-2:]]

    def _pictures(self, x: Tensor) -> Tensor:
        assert self._decoder is not None
        vae = self._decoder.module
        return vae.decode(self.latents(x).to(vae.dtype), return_dict=False)[0].to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> "Latents":
        if self._decoder is not None:
            self._decoder.module._apply(fn)
        return super()._apply(fn, recurse)


class _Unregistered:
    """A module that an owner holds without owning its parameters; copies share it."""

    def __init__(self, module: Any):
        self.module = module.requires_grad_(False).eval()

    def __deepcopy__(self, memo: Any) -> "_Unregistered":
        return self


def _autoencoder(vae: Vae, chosen: str) -> nn.Module:
    """The autoencoder, of which only what decodes is kept; blocks are recomputed in the backward pass."""
    owner = "the decoder"
    family = getattr(require("diffusers", extra="latents", owner=owner), vae.model)
    folder = None if chosen == "random" or sizes_alone() else _folder(vae, chosen, owner)
    with confined(owner, "give decoder=FOLDER with a copy that is whole"), seeded(0):
        model = (
            family.from_config(vae.config)
            if folder is None
            else family.from_pretrained(folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
        )
    model.encoder = nn.Identity()
    model.enable_gradient_checkpointing()
    return model


def _folder(vae: Vae, chosen: str, owner: str) -> Path:
    if chosen == "pretrained":
        remedy = f'fetch {vae.repository} there, give decoder=FOLDER with a copy, or "random" for an untrained one'
        names = [f"{vae.subfolder}{name}" for name in (FILE, "config.json")]
        found = [hub_file(vae.repository, (name,), allow_download=False, owner=owner, remedy=remedy) for name in names]
        return found[0].parent
    folder = Path(chosen).expanduser()
    if not (folder / FILE).is_file():
        raise InputError(
            f'decoder must be "pretrained", "random", "none" or a folder with {FILE}; there is none at {folder}'
        )
    return folder
