"""Class labels."""

from rdm.api import Count, Law, Numbers, conditions


@conditions.register("labels", examples=({"classes": 4}, {"law": [0.5, 0.0, 2.0]}))
def labels(classes: Count | None = None, law: Law = "uniform") -> Numbers:
    """Class labels "n", uniform, as often as the data has them, or by a table of probabilities.

    Args:
        classes: how many; None where the law says it.
        law: "uniform", "data", probabilities (a list, or the path of a .npy or safetensors file), one a class.
    """
    return Numbers(classes, law)
