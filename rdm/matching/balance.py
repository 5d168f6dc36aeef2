"""Balances: how the distances under several representations become one loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rdm.numbers import Positive, validated


class Balance(ABC):
    """Coefficients c of the loss sum_k w_k c_k L_k; they are constants, and L_k alone carries the gradient."""

    needs_nonnegative: bool = False  # terms must be non-negative by their objective's trait

    @abstractmethod
    def coefficients(
        self, values: Float[Tensor, " k"], state: Float[Tensor, " s"] | None
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, " s"] | None]:
        """Coefficients for the detached values of the terms, and the next state (None for a balance without)."""


@dataclass(frozen=True)
class Uniform(Balance):
    """c_k = 1: the terms as they are."""

    def coefficients(
        self, values: Float[Tensor, " k"], state: Float[Tensor, " s"] | None
    ) -> tuple[Float[Tensor, " k"], None]:
        """Ones."""
        return values.new_ones(len(values)), None


@validated
@dataclass(frozen=True)
class SelfNormalized(Balance):
    """c_k = 1 / (L_k + eps), each term divided by its own detached value.

    Source: Yang et al. (2026), "Representation Fréchet Loss", equation 15, with eps = 0.01 (comparable to a
    distance of an encoder with small features: choose it well below the terms). The loss is then near the number of
    terms and says nothing; log the distances.

    Raises:
        InputError: eps not positive; at the population, an objective that can be negative.
    """

    eps: Positive = 0.01

    needs_nonnegative = True

    def coefficients(
        self, values: Float[Tensor, " k"], state: Float[Tensor, " s"] | None
    ) -> tuple[Float[Tensor, " k"], None]:
        """1 / (L + eps)."""
        return 1 / (values + self.eps), None
