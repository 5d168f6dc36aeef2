"""CLIP maximum mean discrepancy."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from objectives._discrepancy import KernelTarget, Pairwise, discrepancy, kernel_target
from objectives._kernels import Gaussian
from objectives._sides import Products
from rdm.api import Portion, Real, Samples, Traits, objectives


@objectives.register("cmmd")
@dataclass(frozen=True)
class CMMD(Pairwise):
    r"""CLIP maximum mean discrepancy: 1000 times the biased squared MMD of a Gaussian kernel of bandwidth 10.

    .. math:: 1000 \Big( \sum_{ii'} a_i a_{i'} k(x_i, x_{i'}) - 2 \sum_{ij} a_i b_j k(x_i, y_j)
              + \sum_{jj'} b_j b_{j'} k(y_j, y_{j'}) \Big), \quad k(x, y) = e^{-|x - y|^2 / 200}

    Source: Jayasumana et al. (2024), section 4 and its published code: `mmd` with kernel="gaussian", bandwidth=10,
    estimator="biased", times 1000. The published number is of CLIP ViT-L/14-336 image embeddings of length 1; rows are
    taken as they are here, so that the representation must normalise them.

    products "bfloat16" takes both matrix products in bfloat16, as `mmd` does, at the same error.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        Thousandths of kernel units. It exceeds the population's value by 1000 (1 - E k)(1/n + 1/m).
    Cost:
        n (n/2 + m) d in time, tiles of 8 MiB in memory; m d once. float32 features stay in float32.
        m is 65,536 at most: of a larger reference, rows drawn uniformly. Of more than 8,192 the constant of the
        reference alone, which has no gradient, is estimated from the pairs of 2,048 with all, to about sd(k) / 1.4.

    Raises:
        InputError: none beyond those of every distance.

    >>> import torch, rdm
    >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> round(rdm.distance("cmmd", x, y).item(), 3)  # 2000 (1 - exp(-2 / 200))
    19.9
    """

    products: Products = "float32"

    @property
    def traits(self) -> Traits:  # noqa: D102
        return Traits()

    def bind(self, reference: Real) -> tuple[Samples, KernelTarget]:
        """Rows about the reference's mean; the target is the reference with its own sum."""
        return kernel_target(Gaussian((10.0,)), reference, "biased", self.products)

    def part(self, summary: Any, target: KernelTarget, portion: Portion, *, generator: Any = None) -> Tensor:
        """1000 times the biased discrepancy."""
        return 1000 * discrepancy(summary, target, "biased", portion)
