"""What the recipes of iRDM need: python -m experiments.irdm [--data DIR] [--fresh DIR] [--flux DIR]."""

import sys

from experiments.prepare import Made, Weights, prepare


def _reference(path: str, data: str, *options: str) -> Made:
    return Made(path, ("reference", data, *options, "--out", path))


KLEIN = "flux-2-klein-4b.safetensors"
LANDMARKS = ("--battery", "irdm10", "--landmarks")
NEEDS = (
    Weights(
        "weights/irdm/pMF-H_FD-SIM.pth", "jjiaweiyang/FD-Loss", "checkpoints/post-trained/pMF-H_FD-SIM.pth",
        "a file of this name elsewhere is already iRDM's result",
    ),
    Weights("weights/fd_loss/pMF-H_256.pth", "jjiaweiyang/FD-Loss", "checkpoints/base/pMF-H_256.pth"),
    Weights(f"weights/irdm/{KLEIN}", "black-forest-labs/FLUX.2-klein-4B", KLEIN),
    _reference("runs/imagenet256/irdm10.safetensors", "DATA", "--fresh", "FRESH", *LANDMARKS, "4096", "--size", "256"),
    _reference("runs/imagenet256/dinov2.safetensors", "DATA", "--battery", "fdr6", "--rows", "all", "--size", "256"),
    _reference("runs/flux/irdm10.safetensors", "FLUX", *LANDMARKS, "8192", "--size", "512"),
    Weights("runs/flux/contexts.npy", "", "hidden states 9, 18, 27 of Qwen3-4B for each prompt, (prompts, 48, 7680)"),
    Weights("runs/flux/captions.safetensors", "", "SigLIP2's text embeddings, a row a prompt; rdm encode makes them"),
    Weights("runs/flux/joint.safetensors", "", "pictures with the numbers of their prompts under the joint battery"),
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(prepare("irdm", NEEDS, ("data", "fresh", "flux"), sys.argv[1:]))
