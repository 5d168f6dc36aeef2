"""What the recipes of FSF-DMD need: python -m experiments.fsf_dmd [--data DIR] [--allow-download]."""

import sys

from experiments.prepare import Made, Weights, prepare

VAE, LATENTS = "stabilityai/sd-vae-ft-mse", "runs/imagenet256/latents"
NEEDS = (
    Weights("weights/fsf_dmd/iMF-B-2.pth", "Lyy0725/iMF", "iMF-B-2.pth"),
    Weights("weights/fsf_dmd/SiT-XL-2-256x256.pt", "", "SiT-XL-2-256x256.pt of the authors of SiT (willisma/SiT)"),
    Made(
        LATENTS,
        ("encode", "DATA", "--with", "autoencoder_latents", "--set", f"model={VAE}", "--size", "256", "--out", LATENTS),
    ),
)

if __name__ == "__main__":
    sys.exit(prepare("fsf_dmd", NEEDS, ("data",), sys.argv[1:]))
