"""The gradient of one step: of all losses, summed over ranks, its norm taken and clipped."""

from collections.abc import Sequence

from rdm.distributed import agree
from rdm.errors import NonFiniteError
from rdm.scaling.arithmetic import Arithmetic
from rdm.scaling.norm import clipped
from rdm.scaling.sums import GradientSums
from rdm.scaling.weights import Weights
from rdm.timing.regions import OTHER, region
from rdm.training.loss import Loss
from rdm.training.run import check_finite, joined


@region(OTHER)  # with which a step begins
def take_gradient(
    weights: Weights,
    losses: Sequence[Loss],
    step: int,
    *,
    sums: GradientSums,
    arithmetic: Arithmetic,
    clip: float | None,
) -> dict[str, float]:
    """Add the gradient of all losses to what is stepped; returns what they log, and its norm before clipping.

    Raises:
        NonFiniteError: on every rank, where something is not finite on one.
        Overflow: the gradient, in float16, may be finite with the next loss scale.
    """
    records, scale = list[dict[str, float]](), arithmetic.scale
    with sums.step():
        for loss in losses:
            sums.final, problem = loss is losses[-1], None
            try:
                with arithmetic():
                    records.append(loss.backward(weights.model, step, scale.value))
                check_finite(records[-1])
            except NonFiniteError as error:
                problem = error
            agree(problem)
    used = scale.logged
    scale.divide(weights.stepped)
    norm = clipped(weights.stepped, clip)
    scale.see(norm)
    check_finite({"the gradient": norm})
    return {**joined(records), "gradient_norm": norm, **used}
