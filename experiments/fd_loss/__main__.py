"""What the recipes of FD-loss need: python -m experiments.fd_loss [--data DIR] [--fresh DIR] [--allow-download]."""

import sys

from experiments.prepare import Made, Weights, prepare

BASES = (
    *(f"pMF-{size}_{side}" for side in (256, 512) for size in "BLH"),
    *(f"iMF-{size}" for size in ("B", "L", "XL")),
    *(f"JiT-{size}" for size in "BLH"),
)
NEEDS = (
    *(Weights(f"weights/fd_loss/{name}.pth", "jjiaweiyang/FD-Loss", f"checkpoints/base/{name}.pth") for name in BASES),
    Made(
        "runs/imagenet256/fdr6.safetensors",
        (
            "reference", "DATA", "--fresh", "FRESH", "--battery", "fdr6", "--size", "256",
            "--out", "runs/imagenet256/fdr6.safetensors",
        ),
    ),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(prepare("fd_loss", NEEDS, ("data", "fresh"), sys.argv[1:]))
