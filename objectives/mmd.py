"""Maximum mean discrepancy."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from objectives._bandwidth import Bandwidth, bandwidths, is_fitted, radial
from objectives._discrepancy import Estimator, KernelTarget, Pairwise, discrepancy, kernel_target
from objectives._kernels import Polynomial
from objectives._pairs import Kernel
from objectives._sides import Products
from rdm.api import InputError, Portion, Positive, Real, Samples, Traits, objectives


@objectives.register(
    "mmd",
    examples=(
        {"bandwidth": [1.0, 3.0]},
        {"estimator": "unbiased"},
        {"kernel": "laplacian", "bandwidth": ("median", 1.5)},
        {"kernel": "inverse_multiquadric", "bandwidth": 2.0, "estimator": "unbiased"},
        {"kernel": "rational_quadratic", "bandwidth": [0.7, 2.0], "alpha": 0.5},
        {"kernel": "polynomial"},
    ),
)
@dataclass(frozen=True)
class MMD(Pairwise):
    r"""Squared maximum mean discrepancy between both sides' kernel mean embeddings.

    .. math:: \sum_{ii'} a_i a_{i'} k(x_i, x_{i'}) - 2 \sum_{ij} a_i b_j k(x_i, y_j)
              + \sum_{jj'} b_j b_{j'} k(y_j, y_{j'})

    Source: Gretton et al. (2012), eq. 5 (biased, a V-statistic) and eq. 3 (unbiased: the sums within a side leave out
    i = i' and are divided by 1 - sum a_i^2). The weights a, b are normalised. The kernels, with r = |x - y| and
    bandwidth sigma:

    - gaussian: exp(-r^2 / 2 sigma^2)
    - laplacian: exp(-r / sigma)
    - inverse_multiquadric: (1 + r^2 / sigma^2)^(-1/2)
    - rational_quadratic: (1 + r^2 / 2 alpha sigma^2)^(-alpha), as in Binkowski et al. (2018) with sigma = 1
    - polynomial: (x.y / d + 1)^3, KID's, of the rows as they are; no bandwidth, in float64, not translation invariant

    bandwidth "median": the square root of the median squared pairwise distance of the reference (10,000 rows at most),
    fitted once; ("median", 0.25) is a quarter of it. Kernels of a list of bandwidths are summed: numbers and such
    multiples, [("median", 0.5), ("median", 2.0), 3.0]. The laplacian has a cusp at r = 0: rows that coincide
    (within 1e-7 of their distance from the mean) do not pull each other.

    products "bfloat16" rounds the rows about the reference's mean and takes both matrix products in bfloat16, summed in
    float32: a third of the time where the processor has such products, of float64 features too; elsewhere no gain. A
    row moves by at most 1/256 of each coordinate, so that rows nearer each other than 1/250 of their distance from the
    mean are one; every distance is then right to 1/500 of itself. Beside float64, for d from 8 to 768, any offset, and
    bandwidths of a quarter to 4 medians: the value to 1.5 %, the gradient to 2 % (cosine .9998), near convergence too,
    and to .3 % far from it; in one or two dimensions the value to 15 %, the gradient to 10 %. Memory 2 m d bytes more.

    Shapes:
        features: n d; weights: n; result ().
    Units:
        None (kernel units); with one bandwidth at most 2. The biased value exceeds the population's by
        (1 - E k)(1/n + 1/m); its gradient is that of the unbiased one but for a factor (n - 1)/n on the repulsion.
    Cost:
        n (n/2 + m) d in time, tiles of 8 MiB in memory; m d once. float32 features stay in float32.
        m is 65,536 at most: of a larger reference, rows drawn uniformly. Of more than 8,192 the constant of the
        reference alone, which has no gradient, is estimated from the pairs of 2,048 with all, to about sd(k) / 1,400.

    Raises:
        InputError: "unbiased" with fewer than 2 effective rows on a side; a bandwidth or alpha that is not positive;
        bfloat16 products of the polynomial kernel;
        "median" of a reference with more than half of its pairs equal.

    >>> import torch, rdm
    >>> x, y = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    >>> round(rdm.distance("mmd", x, y, bandwidth=1.0).item(), 4)  # 2 - 2 exp(-2)
    1.7293
    >>> round(rdm.distance("mmd", x, y, kernel="laplacian", bandwidth=1.0).item(), 4)  # 2 - 2 exp(-2)
    1.7293
    """

    kernel: Literal["gaussian", "laplacian", "inverse_multiquadric", "rational_quadratic", "polynomial"] = "gaussian"
    bandwidth: Bandwidth = "median"
    estimator: Estimator = "biased"
    alpha: Positive = 1.0
    products: Products = "float32"

    def __post_init__(self) -> None:  # noqa: D105
        super().__post_init__()
        if self.kernel == "polynomial" and self.products != "float32":
            raise InputError(
                f'kernel "polynomial" is computed in float64; got products={self.products!r}; leave products out'
            )

    @property
    def traits(self) -> Traits:  # noqa: D102
        biased, fitted = self.estimator == "biased", self.kernel != "polynomial"
        symmetric = not (fitted and is_fitted(self.bandwidth))
        return Traits(
            nonnegative=biased,
            zero_at_identity=biased,
            symmetric=symmetric,
            translation_invariant=fitted,
            plug_in=biased,
            bounded_below=biased or fitted,
        )

    def bind(self, reference: Real) -> tuple[Samples, KernelTarget]:
        """Rows about the reference's mean; the target is the reference with its fitted bandwidth and own sum."""
        return kernel_target(self._fitted(reference), reference, self.estimator, self.products)

    def part(self, summary: Any, target: KernelTarget, portion: Portion, *, generator: Any = None) -> Tensor:
        """Repulsion within the population, attraction to the reference, and the reference's constant."""
        return discrepancy(summary, target, self.estimator, portion)

    def _fitted(self, reference: Real) -> Kernel:
        if self.kernel == "polynomial":
            return Polynomial()
        return radial(self.kernel, bandwidths(self.bandwidth, reference), self.alpha)
