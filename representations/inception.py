"""The Inception-v3 of FID."""

from typing import Literal

from rdm.api import InputError, Representation, images, load_strictly, read_weights, representations
from representations._images import Preprocess
from representations._inception import InceptionEncoder, InceptionV3
from representations._weights import PRETRAINED, RANDOM, in_torch_hub, origin, untrained, url_file, weights_file

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


@representations.register(
    "inception",
    examples=({"weights": RANDOM, "size": 75},),
    notes={"dimension": "2048", "input": "3 x 299", "pooling": "pool3", "licence": "Apache-2.0"},
    present=lambda: in_torch_hub(URL),
)
def inception(
    output: Literal["pool3", "logits"] = "pool3",
    scaling: Literal["fid", "symmetric"] = "fid",
    resize: Literal["tensorflow", "clean"] = "tensorflow",
    size: int = 299,
    weights: str = PRETRAINED,
    allow_download: bool = False,
    sha256: str | None = None,
    name: str = "inception",
) -> Representation:
    """Features of FID's Inception-v3 (Szegedy et al. 2016; Heusel et al. 2017): the pooled map before the classifier.

    The network of TensorFlow's graph of 2015-12-05, with its own average pooling (borders not counted), a maximum in
    the last block and 1,008 classes. Images are resized to `size`, 299 in FID. resize: "tensorflow" is TensorFlow 1's
    bilinear, without antialias, as FID is published; "clean" is Pillow's bicubic in float, as clean-fid (Parmar et al.
    2022). scaling: "fid" is the original (255 x - 128) / 128, of float images too; "symmetric" is 2 x - 1, as FD-loss
    and iRDM train and judge. output: "pool3", or "logits" without the bias, as the Inception score takes them.
    weights: "pretrained" is the file that torch-fidelity publishes, in torch.hub's folder (fetched there with
    `allow_download`, checked by the hash in its name), "random" is untrained, else such a file.

    Shapes: n 3 h w -> n 2048, or n 1008. Cost: 5.7 GFLOP an image.

    Raises:
        InputError: no weights there; another output, scaling or resize.
        MismatchError: weights of another architecture, with the first ten tensors; a file of another hash.
    """
    known = {"output": ("pool3", "logits"), "scaling": ("fid", "symmetric"), "resize": ("tensorflow", "clean")}
    for option, value in {"output": output, "scaling": scaling, "resize": resize}.items():
        if value not in known[option]:
            raise InputError(f"inception takes {option} {' or '.join(map(repr, known[option]))}; got {value!r}")
    path = weights_file(weights, sha256, name, lambda: url_file(URL, allow_download=allow_download, owner=name))
    network = untrained(InceptionV3)
    if path is not None:
        load_strictly(network, read_weights(path, name), source=path, owner=name)
    middle, width = (128 / 255, 128 / 255) if scaling == "fid" else (0.5, 0.5)
    module = InceptionEncoder(Preprocess(size, (middle,), (width,), resize), network, output)
    settings = {"output": output, "scaling": scaling, "resize": resize, "size": size, **origin(path)}
    return Representation(name, module, settings, inputs=images())
