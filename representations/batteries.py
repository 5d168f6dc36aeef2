"""Named batteries: representations to train on, and others held out for evaluation only."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rdm.api import Battery, Count, InputError, Precision, assemble, batteries, representations
from representations._inception import with_logits


@batteries.register("untrained")
def untrained(channels: int | None = None) -> Battery:
    """Pixels, 16 principal components and random convolutions of as many channels as the reference has; no weights.

    Other random kernels are held out.
    """
    members = (
        representations.build("pixels"),
        representations.build("pca", components=16),
        representations.build("random_convolutions", channels=channels),
    )
    held_out = representations.build("random_convolutions", channels=channels, seed=1, name="held_out_convolutions")
    return Battery(members, (held_out,))


@batteries.register("digits", needs="runs of digits/classifier and digits/judge (`rdm demo` makes them)")
def digits(classifier: str = "runs/digits/classifier", judge: str = "runs/digits/judge") -> Battery:
    """Pixels and a convolutional classifier's features; an MLP-mixer's features, trained apart, held out."""
    members = (
        representations.build("pixels"),
        representations.build("classifier", weights=classifier, network="conv_classifier", name="classifier"),
    )
    held_out = representations.build("classifier", weights=judge, network="mixer_classifier", name="held_out_mixer")
    return Battery(members, (held_out,))


@batteries.register("spoken_digits", needs="runs of spoken_digits/encoder and spoken_digits/judge")
def spoken_digits(encoder: str = "runs/spoken_digits/encoder", judge: str = "runs/spoken_digits/judge") -> Battery:
    """Log-mel statistics and features of a network over log-mel; one over raw waveforms, trained apart, held out."""
    members = (
        representations.build("log_mel"),
        representations.build("classifier", weights=encoder, network="spectrogram_classifier", name="encoder"),
    )
    held_out = representations.build("classifier", weights=judge, network="waveform_classifier", name="held_out_judge")
    return Battery(members, (held_out,))


@batteries.register(
    "fid",
    examples=(),
    notes={"members": "1", "held out": "1"},
    needs="weights of Inception, or allow_download=True",
    present=lambda: _inception(),
)
def fid(weights: str = "pretrained", allow_download: bool = False, sha256: str | None = None) -> Battery:
    """FID's Inception-v3 alone: its pool features, and its class logits for the Inception score, held out.

    `rdm evaluate` measures by the convention of this name where nothing else is asked: FID, KID and the Inception score
    as published. `weights`, `allow_download` and `sha256` are those of the representation `inception`.
    """
    features = representations.build("inception", weights=weights, allow_download=allow_download, sha256=sha256)
    return Battery((features,), (with_logits(features, "logits"),))  # one pass of the network for both


def _inception() -> bool:
    present = representations["inception"].present
    return present is not None and present()


class Row(NamedTuple):
    """A battery of registered encoders."""

    members: tuple[str, ...]
    held_out: tuple[str, ...]
    title: str


IRDM = (
    "inception_symmetric",
    "convnext",
    "mae",
    "clip",
    "dinov3_l",
    "pe_core_l",
    "siglip2",
    "aimv2_huge",
    "webssl_dino_1b",
    "dreamsim",
)
ROWS = {
    "sim": Row(
        ("siglip2", "inception_symmetric", "mae_cls"),
        ("convnext", "dinov2", "clip"),
        "FD-loss' SIM: SigLIP2, Inception and MAE; the other three of FDr6 held out",
    ),
    "fdr6": Row(
        ("inception_symmetric", "convnext", "dinov2", "mae_cls", "siglip2"),
        ("clip",),
        "FD-loss' six judges of FDr6; CLIP, which it never trains on, held out",
    ),
    "irdm10": Row(IRDM, (), "iRDM's ten training encoders, none held out"),
    "sw_r14": Row(
        IRDM,
        ("dinov2", "siglip_v1", "cradiov3_l", "flux_vae"),
        "iRDM's fourteen: ten to train on, four held out",
    ),
}


def _builder(row: Row) -> Callable[..., Battery]:
    def build(
        weights: Mapping[str, str] | None = None,
        allow_download: bool = False,
        micro_batch: int | Mapping[str, int] | None = None,
        precision: Precision | Mapping[str, Precision] = "float32",
        clamp: bool = False,
        compile: bool = False,
    ) -> Battery:
        def encoder(name: str) -> Any:
            local = {"weights": files[name]} if name in files else {}
            return representations.build(name, allow_download=allow_download, **local)

        files = weights or {}
        if strange := sorted(set(files) - {*row.members, *row.held_out}):
            raise InputError(f"weights: the battery has no member {strange[0]!r}; it has {', '.join(row.members)}")
        members, held_out = (tuple(map(encoder, names)) for names in (row.members, row.held_out))
        return assemble(members, held_out, None, micro_batch, precision, clamp, compile)

    build.__doc__ = (
        f"{row.title}.\n\n"
        "`weights` gives local files by member; the others come from the caches. The other options are those of\n"
        "`rdm.matching.representation.assemble`."
    )
    build.__module__ = __name__
    return build


def _present(row: Row) -> bool:
    every = [representations[name].present for name in (*row.members, *row.held_out)]
    return all(present is None or present() for present in every)


for _name, _row in ROWS.items():
    batteries.register(
        _name,
        examples=(),
        notes={"members": str(len(_row.members)), "held out": str(len(_row.held_out))},
        present=lambda row=_row: _present(row),
    )(_builder(_row))


MOBILE = Path("imagenet_encoders")


def _mobile_folder() -> Path | None:
    root = os.environ.get("RDM_DATA")
    return Path(root) / MOBILE if root else None


@batteries.register(
    "mobile",
    needs='RDM_DATA, a folder with imagenet_encoders; timm and torchvision: pip install "rdm-torch[vision]"',
    notes={"members": "4", "held out": "2"},
    present=lambda: (folder := _mobile_folder()) is not None and folder.is_dir(),
)
def mobile(
    folder: str | None = None,
    logits: bool = False,
    size: Count | None = None,
    training: str | Sequence[str] | None = None,
    micro_batch: int | Mapping[str, int] | None = None,
    precision: Precision | Mapping[str, Precision] = "float32",
    clamp: bool = False,
    compile: bool = False,
) -> Battery:
    """Six small ImageNet encoders from local files: MobileNet v1 in four widths, v2, SqueezeNet.

    MobileNet v1 (1.0, 0.5, 0.25) and v2 are to train on; v1 0.75 and SqueezeNet, another family with other
    preprocessing, are held out. `folder` holds the files, RDM_DATA/imagenet_encoders by default. `logits` adds v2's
    class logits, held out, for the Inception score. `size` is the side of the pictures that all of them see, in the
    place of their own (128 to 227): at 48, CIFAR-10 costs a tenth and a linear probe finds 53 to 57 % of the classes,
    at 64 57 to 62 %. `training` names those of the four to train on, all others are held out. The other options are
    those of `assemble`.

    Raises:
        InputError: no files there, or no encoder to train on of a name in `training`.
    """
    place = Path(folder) if folder is not None else _mobile_folder()
    if place is None:
        raise InputError('battery "mobile" reads RDM_DATA/imagenet_encoders; set RDM_DATA, or give folder=')

    def first(width: float, own: int) -> Any:
        name = f"mobilenetv1_{round(100 * width):03}"
        options = {"weights": str(place / f"{name}.safetensors"), "width": width, "size": size or own, "name": name}
        return representations.build("mobilenet", **options)

    def second(name: str, **options: Any) -> Any:
        file = {"weights": str(place / "mobilenetv2_100.safetensors"), "name": name}
        scale = {"mean": (0.5,) * 3, "std": (0.5,) * 3, **({} if size is None else {"size": size})}
        return representations.build("timm", model="mobilenetv2_100", **file, **scale, **options)

    squeeze = representations.build(
        "torchvision",
        model="squeezenet1_0",
        layer="features",
        pool="spatial",
        size=size or 227,
        weights=str(place / "squeezenet1_0_deepcompression.safetensors"),
        mean=(104 / 255, 117 / 255, 123 / 255),
        std=(1 / 255,) * 3,
        bgr=True,
        name="squeezenet",
    )
    padding = {"pad_type": "same"}
    members = (
        first(1.0, 224),
        second("mobilenetv2_100", arguments=padding),
        first(0.5, 160),
        first(0.25, 128),
    )
    classes = [second("mobilenetv2_logits", pool="logits", arguments=padding)]
    held_out = (first(0.75, 192), squeeze, *(classes if logits else ()))
    battery = assemble(members, held_out, None, micro_batch, precision, clamp, compile)
    return (
        battery if training is None else battery.training_on(*([training] if isinstance(training, str) else training))
    )
