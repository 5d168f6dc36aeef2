"""Balances: how the distances under several representations become one loss.

A balance is a frozen dataclass of hyperparameters with one pure function; what it keeps from step to step is a vector
with one number a term, which `Population` keeps and checkpoints hold.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rdm.numbers import Float, Positive, Share
from rdm.registry import balances
from rdm.timing.reads import usual


class Terms(NamedTuple):
    """What a balance may look at: detached numbers in float64, one a term, in the members' order."""

    values: Float[Tensor, " k"]  # distances of this step
    floors: Float[Tensor, " k"] | None = None  # distances of as many real items (`needs_floors`)
    pulls: Float[Tensor, " k"] | None = None  # norms of the terms' gradients in the items (`needs_pulls`)


class Balance(ABC):
    """Coefficients c of the loss sum_k w_k c_k L_k; they are constants, and L_k alone carries the gradient.

    `pulls` are those of the step before, whatever the chunks: a step in chunks knows its own only when the gradient is
    done. The first step measures its own beforehand, by one more pass through generator and encoders where there are
    chunks.
    """

    needs_nonnegative: ClassVar[bool] = False  # terms must be non-negative by their objective's trait
    needs_floors: ClassVar[bool] = False  # the reference must hold fresh rows
    needs_pulls: ClassVar[bool] = False
    uses_values: ClassVar[bool] = True  # a term whose value is no size (`Traits.normalize`) is left as it is

    @abstractmethod
    def coefficients(
        self, terms: Terms, state: Float[Tensor, " k"] | None
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"] | None]:
        """Coefficients of the terms, and the next state (None for a balance without; None before the first step)."""


@balances.register("uniform")
@dataclass(frozen=True)
class Uniform(Balance):
    """c_k = 1: the terms as they are."""

    uses_values = False

    def coefficients(self, terms: Terms, state: Float[Tensor, " k"] | None) -> tuple[Float[Tensor, " k"], None]:
        """Ones."""
        return torch.ones_like(terms.values), None


@balances.register("self_normalized")
@dataclass(frozen=True)
class SelfNormalized(Balance):
    """c_k = 1 / (L_k + eps), each term divided by its own detached value.

    Source: Yang et al. (2026), "Representation Fréchet Loss", equation 15, with eps = 0.01; Feng et al. (2026),
    "Representation Distribution Matching", with eps = 1e-7. It is comparable to a distance of an encoder with small
    features: choose it well below the terms. The loss is then near the number of terms and says nothing; log the
    distances.

    Raises:
        InputError: eps not positive; at the population, an objective that can be negative.
    """

    eps: Positive = 0.01

    needs_nonnegative = True

    def coefficients(self, terms: Terms, state: Float[Tensor, " k"] | None) -> tuple[Float[Tensor, " k"], None]:
        """1 / (L + eps)."""
        return 1 / (terms.values + self.eps), None


@balances.register("gated")
@dataclass(frozen=True)
class Gated(Balance):
    r"""Self-normalised terms, weighed by how far they are above their floors; satisfied ones drop out.

    .. math:: c_k = \lambda_k / (L_k + eps), \quad \lambda = total \cdot \operatorname{softmax}_{z_k > 0}
              (z_k / (temperature \cdot \bar z)), \quad z_k = \min(s_k - b_k, clip)

    with b_k the floor: the distance of as many real items as the population holds, measured again when that number
    changes; s_k the average of the distances with decay `decay`, those of this step excluded; \bar z the mean of the
    positive z. The first step has lambda = 1; once every term is at its floor all are 0 and nothing is learned.
    `relative` divides the excess by the floor: as published, encoders of large distances weigh more.

    Source: Feng et al. (2026), "Representation Distribution Matching", the proportional controller of its released
    code (kp = 1, ki = kd = 0; kp cancels), after Stooke et al. (2020).

    Raises:
        InputError: a hyperparameter outside its range; at the population, an objective that can be negative or a
        reference without fresh rows.
    """

    total: Positive | None = None  # sum of lambda; None for the number of terms
    temperature: Positive = 2.0
    decay: Share = 0.5
    clip: Positive = 5.0
    relative: bool = False
    eps: Positive = 1e-7

    needs_nonnegative = needs_floors = True

    def coefficients(
        self, terms: Terms, state: Float[Tensor, " k"] | None
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
        """Lambda by the scores so far, over the terms; the scores with this step's."""
        assert terms.floors is not None
        if state is None:
            return 1 / (terms.values + self.eps), terms.values
        scores = self.decay * state + (1 - self.decay) * terms.values
        return self.multipliers(state, terms.floors) / (terms.values + self.eps), scores

    def multipliers(self, scores: Float[Tensor, " k"], floors: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Lambda."""
        excess = (scores - floors) / floors if self.relative else scores - floors
        excess = excess.clamp(max=self.clip)
        above = excess > 0
        if not usual(above.any()):
            return torch.zeros_like(scores)
        mean = torch.where(above, excess, 0).sum() / above.sum()
        scaled = excess / (self.temperature * mean).clamp_min(1e-12)
        shares = scaled.masked_fill(~above, -float("inf")).softmax(0)
        return (len(scores) if self.total is None else self.total) * shares


@balances.register("gradient_norm")
@dataclass(frozen=True)
class GradientNorm(Balance):
    """c_k = 1 / g_k: every term pulls on the generated items with the same size, 1 in norm over all of them.

    g_k is the norm of the term's gradient in the items, averaged over the steps before with decay `decay` (see
    `Balance` for the first). What is balanced is what reaches the generator, whatever the units of encoders and
    objectives, so that terms of any sign and without a size take part; battery weights are then ratios of pulls. A
    term whose pull is below `least` of the largest is not amplified to its size.

    Source: of the kind of Chen et al. (2018), "GradNorm", without its training rates.

    Raises:
        InputError: a hyperparameter outside its range.
    """

    decay: Share = 0.5
    least: Share = 1e-8

    needs_pulls, uses_values = True, False

    def coefficients(
        self, terms: Terms, state: Float[Tensor, " k"] | None
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
        """1 / g, and g."""
        assert terms.pulls is not None
        norms = terms.pulls if state is None else self.decay * state + (1 - self.decay) * terms.pulls
        bound = (self.least * norms.max()).clamp_min(torch.finfo(norms.dtype).tiny)
        return 1 / norms.maximum(bound), norms
