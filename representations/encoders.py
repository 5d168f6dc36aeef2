"""Encoders of the published batteries, a row each: model, size, pooling, width and licence."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from rdm.api import Representation, representations
from representations._weights import PRETRAINED, in_hub


class Row(NamedTuple):
    """One encoder."""

    loader: str  # a registered representation
    arguments: Mapping[str, Any]  # of the loader
    dimension: int
    title: str
    licence: str


ROWS = {
    "inception_symmetric": Row(
        "inception",
        {"scaling": "symmetric"},
        2048,
        "FID's Inception-v3 on 2 x - 1, as FD-loss and iRDM use it",
        "Apache-2.0",
    ),
    "convnext": Row(
        "timm",
        {"model": "convnextv2_base.fcmae_ft_in22k_in1k", "pool": "spatial", "size": 224},
        1024,
        "ConvNeXt v2 base, the map's mean",
        "CC-BY-NC-4.0",
    ),
    "mae": Row(
        "timm",
        {"model": "vit_large_patch16_224.mae", "pool": "mean", "size": 224},
        1024,
        "MAE ViT-L, the patch tokens' mean (iRDM)",
        "CC-BY-NC-4.0",
    ),
    "mae_cls": Row(
        "timm",
        {"model": "vit_large_patch16_224.mae", "pool": "cls", "size": 224},
        1024,
        "MAE ViT-L, class token (FD-loss)",
        "CC-BY-NC-4.0",
    ),
    "clip": Row(
        "timm",
        {"model": "vit_large_patch14_clip_224.openai", "pool": "cls", "size": 256},
        1024,
        "CLIP ViT-L/14, class token before the projection, padded to 19 x 19 patches",
        "Apache-2.0",
    ),
    "dinov2": Row(
        "timm",
        {"model": "vit_large_patch14_dinov2.lvd142m", "pool": "cls", "size": 256},
        1024,
        "DINOv2 ViT-L, class token, padded to 19 x 19 patches",
        "Apache-2.0",
    ),
    "dinov3_l": Row(
        "timm",
        {"model": "vit_large_patch16_dinov3.lvd1689m", "pool": "cls", "size": 224},
        1024,
        "DINOv3 ViT-L, class token",
        "DINOv3 licence",
    ),
    "pe_core_l": Row(
        "timm",
        {"model": "vit_pe_core_large_patch14_336.fb", "pool": "attention", "size": 224},
        1024,
        "Perception Encoder core L, attention pool",
        "Apache-2.0",
    ),
    "siglip2": Row(
        "timm",
        {"model": "vit_so400m_patch16_siglip_256.v2_webli", "pool": "attention", "size": 224},
        1152,
        "SigLIP2 SO400M, attention pool (it has no class token)",
        "Apache-2.0",
    ),
    "siglip_v1": Row(
        "timm",
        {"model": "vit_so400m_patch14_siglip_384.webli", "pool": "attention", "size": 384},
        1152,
        "SigLIP SO400M, attention pool",
        "Apache-2.0",
    ),
    "aimv2_huge": Row(
        "timm",
        {"model": "aimv2_huge_patch14_224.apple_pt", "pool": "mean", "size": 224},
        1536,
        "AIMv2 huge, the patch tokens' mean",
        "Apple ASCL",
    ),
    "webssl_dino_1b": Row(
        "huggingface",
        {"model": "facebook/webssl-dino1b-full2b-224", "pool": "pooler", "size": 224},
        1536,
        "Web-SSL DINO 1B, class token",
        "CC-BY-NC-4.0",
    ),
    "cradiov3_l": Row(
        "timm",
        {"model": "naflexvit_large_patch16_radio_v3.c_radio", "pool": "summary", "size": 256},
        3072,
        "C-RADIOv3-L by timm's port, first three summary tokens (the choice of tokens is reconstructed)",
        "NVIDIA open model licence",
    ),
    "flux_vae": Row(
        "autoencoder",
        {"model": "black-forest-labs/FLUX.1-schnell", "subfolder": "vae", "size": 256, "patch": 4},
        1024,
        "latents of FLUX.1 schnell's autoencoder, 4 x 4 means",
        "Apache-2.0",
    ),
}


def _builder(name: str, row: Row) -> Callable[..., Representation]:
    def build(
        weights: str = PRETRAINED, allow_download: bool = False, sha256: str | None = None, name: str = name
    ) -> Representation:
        options = {"weights": weights, "allow_download": allow_download, "sha256": sha256, "name": name}
        return representations.build(row.loader, **row.arguments, **options)

    size = row.arguments.get("size", 299)
    build.__doc__ = (
        f"{row.title}.\n\n"
        f'"{row.loader}" with images at {size} and the rest filled in. Licence of the weights: {row.licence}.\n\n'
        f"Shapes: n 3 h w -> n {row.dimension}. Cost: one forward pass of the model."
    )
    build.__name__ = build.__qualname__ = name
    build.__module__ = __name__
    return build


def _notes(row: Row) -> dict[str, str]:
    pooling = row.arguments.get("pool", "patch means" if row.loader == "autoencoder" else "pool3")
    size = row.arguments.get("size", 299)
    return {"dimension": str(row.dimension), "input": f"3 x {size}", "pooling": pooling, "licence": row.licence}


def _present(row: Row) -> bool:
    """Whether the weights are on this machine, without importing the loader's package."""
    own = representations[row.loader].present
    if own is not None:
        return own()
    model = row.arguments["model"]
    return in_hub(f"timm/{model}" if row.loader == "timm" else model, row.arguments.get("subfolder"))


for _name, _row in ROWS.items():
    _register = representations.register(_name, examples=(), notes=_notes(_row), present=partial(_present, _row))
    _register(_builder(_name, _row))
