"""A loss with a weight of its own, so that several go together in one run."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from rdm.api import Does, Keeps, Logged, Loss, Nonnegative, Setting, Size, losses


@losses.register("weighted")
class Weighted(Loss):
    """A loss times a weight that is a function of the step.

    The weight is 0 before step `start`, rises to `weight` over the `ramp` steps from there, then goes to `last` over
    the `fall` steps that follow. While it is 0 the loss is not computed; what it holds besides does not change.

    Args:
        loss: any other; its own numbers are logged as they are, its loss times the weight.
        weight, last: the weight, and what it ends at; None for no change.
        start, ramp, fall: steps.
    """

    def __init__(
        self,
        loss: Loss,
        weight: Nonnegative = 1.0,
        start: Size = 0,
        ramp: Size = 0,
        last: Nonnegative | None = None,
        fall: Size = 0,
    ):
        self.loss, self.weight, self.start, self.ramp = loss, weight, start, ramp
        self.last, self.fall = weight if last is None else last, fall

    @property
    def conditions(self) -> Any:  # type: ignore[override]
        """Those of the loss."""
        return self.loss.conditions

    @property
    def size(self) -> int | None:  # type: ignore[override]
        """That of the loss."""
        return self.loss.size

    def at(self, step: int) -> float:
        """The weight at a step."""
        if step < self.start:
            return 0.0
        done = step - self.start
        if done < self.ramp:
            return self.weight * (done + 1) / (self.ramp + 1)
        share = min(1.0, (done - self.ramp + 1) / (self.fall + 1)) if self.fall else 1.0
        return self.weight + (self.last - self.weight) * share

    def prepare(self, model: nn.Module, setting: Setting, *, resumed: bool) -> None:
        """As the loss."""
        self.loss.prepare(model, setting, resumed=resumed)

    def rehearse(self, model: nn.Module, setting: Setting, ranks: int) -> Iterator[Keeps | Does]:
        """As the loss."""
        yield from self.loss.rehearse(model, setting, ranks)

    def backward(self, model: nn.Module, step: int, scale: float = 1.0) -> Logged:
        """The loss's gradient, weighted."""
        weight = self.at(step)
        if weight == 0:
            return {"loss": 0.0, "weight": 0.0}
        found = self.loss.backward(model, step, scale * weight)
        return {**found, "loss": weight * found["loss"], "weight": weight}

    def close(self) -> None:
        """As the loss."""
        self.loss.close()

    def state(self) -> dict[str, Any]:
        """That of the loss."""
        return self.loss.state()

    def restore(self, state: dict[str, Any]) -> None:
        """That of the loss."""
        self.loss.restore(state)
