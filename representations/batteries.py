"""Named batteries: representations to train on, and others held out for evaluation only."""

from rdm.registry import batteries, representations
from rdm.representation import Battery


@batteries.register("untrained")
def untrained(channels: int = 1) -> Battery:
    """Pixels, 16 principal components and random convolutions: no weights; other random kernels held out."""
    members = (
        representations.build("pixels"),
        representations.build("pca", components=16),
        representations.build("random_convolutions", channels=channels),
    )
    held_out = representations.build("random_convolutions", channels=channels, seed=1, name="held_out_convolutions")
    return Battery(members, (held_out,))


@batteries.register("digits", needs="runs of experiments/digits/classifier.gin and judge.gin (`make demo` makes them)")
def digits(classifier: str = "runs/digits/classifier", judge: str = "runs/digits/judge") -> Battery:
    """Pixels and a convolutional classifier's features; an MLP-mixer's features, trained apart, held out."""
    members = (
        representations.build("pixels"),
        representations.build("classifier", weights=classifier, network="conv_classifier", name="classifier"),
    )
    held_out = representations.build("classifier", weights=judge, network="mixer_classifier", name="held_out_mixer")
    return Battery(members, (held_out,))
