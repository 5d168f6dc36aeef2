"""One population problem in float64, with plain autograd on the whole population as its oracle; also run on ranks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import rdm
from rdm.generators.protocol import Generator
from rdm.matching.balance import Balance, Terms, Uniform
from rdm.matching.memory import Memory, Queue
from rdm.matching.objective import Objective
from rdm.matching.representation import Battery, Representation
from rdm.population.population import Population

D = 4


class RandomCrop(nn.Module):
    """A representation that draws its crop from the global random state at each call."""

    def forward(self, items: Tensor) -> Tensor:
        start = int(torch.randint(0, 3, ()))
        return items[:, start : start + D].tanh()


def network(*, dropout: float) -> nn.Module:
    """A small generator in float64, rows of 8 to rows of 6."""
    torch.manual_seed(0)
    layers = nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, D + 2)
    return nn.Sequential(*layers).double().train()


def battery(*, crop: bool) -> Battery:
    """All numbers, and a crop of them (random or fixed), with unequal weights."""
    pixels = Representation("all", nn.Flatten())
    second = RandomCrop() if crop else nn.Sequential(nn.Linear(D + 2, D), nn.Tanh()).double()
    return Battery((pixels, Representation("second", second)), weights=(1.0, 0.7))


@dataclass
class Problem:
    """Objective, memory and balance on 60 generated rows against 200 reference rows."""

    objective: Objective | dict[str, Objective]
    memory: Memory
    balance: Balance = Uniform()
    random: bool = False  # dropout in the generator and random crops in the battery
    rows: int = 60
    seed: int = 0
    live: int | None = None  # rows with a gradient

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(self.seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        self.net = network(dropout=0.3 if self.random else 0.0)
        self.battery = battery(crop=self.random)
        self.items = draw(200, D + 2) @ draw(D + 2, D + 2) * 0.5 + 1
        self.noise = draw(self.rows, 8)
        self.warm = draw(80, 8)
        self.weights = torch.rand(self.rows, generator=g, dtype=torch.float64) + 0.2

    def population(self, chunk: int | None) -> Population:
        """A population whose memory holds one past batch of 80 rows, the same for every chunking."""
        torch.manual_seed(1)
        population = Population(
            self.objective,
            self.battery,
            self.items,
            chunk=chunk,
            live=self.live,
            memory=self.memory,
            balance=self.balance,
        )
        torch.manual_seed(2)
        population.chunk = None
        population.warm_up(self.net, self.warm)
        population.chunk = chunk
        return population

    def gradient(self, chunk: int | None, *, rows: slice = slice(None), drawn: int = 5) -> list[Tensor]:
        """Parameter gradients by `Population.backward` on some rows."""
        population = self.population(chunk)
        self.net.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(drawn)
        population.backward(self.net, self.noise[rows], weights=self.weights[rows], generator=generator)
        self.after = torch.rand(())  # the random state afterwards, for replay tests
        return [p.grad.clone() for p in self.net.parameters() if p.grad is not None]

    def oracle(self, chunk: int | None, *, drawn: int = 5) -> list[Tensor]:
        """The same by plain autograd with every graph held: features of all rows, one distance, one backward."""
        population = self.population(None)
        self.net.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        features: list[list[Tensor]] = [[] for _ in population.terms]
        for z in self.noise.split(chunk or self.rows):
            items = self.net(z)
            for k, term in enumerate(population.terms):
                features[k].append(term.representation(items))
        values = []
        generator = torch.Generator().manual_seed(drawn)
        pasts = self._past_rows() if self.memory.riding else [None for _ in population.terms]
        for term, pieces, past in zip(population.terms, features, pasts, strict=True):
            if past is None:
                batch = term.statistic.measure(torch.cat(pieces), self.weights)
                whole, _ = self.memory.read(term.past, batch, self.rows, term.statistic)
            else:
                whole = term.statistic.measure(*self._ridden(past, torch.cat(pieces)))
            values.append(term.objective.distance(whole, term.target, generator=generator))
        raw = torch.stack(values).detach()
        coefficients, _ = self.balance.coefficients(Terms(raw), None)
        for k, term in enumerate(population.terms):
            if not term.objective.traits.normalize:
                coefficients[k] = 1  # no balance touches a term whose value is no size
        sum(w * c * v for w, c, v in zip((1.0, 0.7), coefficients, values, strict=True)).backward()
        return [p.grad.clone() for p in self.net.parameters() if p.grad is not None]

    def _past_rows(self) -> list[Tensor]:
        """Features of the past batch."""
        return [term.past.value for term in replace(self, memory=Queue(1000)).population(None).terms]

    def _ridden(self, past: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """Past and live rows, and their weights, by the definition of a memory that rides."""
        shares = self.weights / self.weights.sum()
        if isinstance(self.memory, Queue):
            past = past[-max(self.memory.size - len(live), 0) :]
            share = len(live) / (len(live) + len(past))
        else:
            share = 1 - self.memory.decay
        mean = shares @ live
        apart = live - mean
        live = live + (1 / share - 1 if self.memory.balanced else 0) * (apart - apart.detach())
        rows = torch.cat([past + mean - mean.detach(), live])
        old = torch.ones(len(past), dtype=torch.float64) / len(past)
        return rows, torch.cat([(1 - share) * old, share * shares])


def relative_error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference over the norm of the expected, over all parameters."""
    flat, wanted = (torch.cat([g.flatten() for g in gradients]) for gradients in (got, expected))
    return float((flat - wanted).norm() / wanted.norm())


def rank_errors(rank: int, folder: str, rows: tuple[int, int], cases: list) -> None:
    """On one of two gloo processes: errors of each case's summed gradient; rank 0 writes them to the folder."""
    import torch.distributed as dist

    from rdm.distributed import sum_gradients
    from tests.test_loss import looped

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mine = slice(0, rows[0]) if rank == 0 else slice(rows[0], sum(rows))
    errors = []
    for name, example, memory, chunk, live in cases:
        problem = Problem(rdm.objective(name, **example), memory, rows=sum(rows), live=live)
        problem.warm = problem.warm[mine.start : mine.start + 40] if rank == 0 else problem.warm[40:]
        problem.gradient(chunk, rows=mine)
        sum_gradients(problem.net.parameters())
        errors.append(torch.cat([p.grad.flatten() for p in problem.net.parameters()]))
    loops = looped(slice(0, 5) if rank == 0 else slice(5, 12))
    if rank == 0:
        torch.save(errors, f"{folder}/gradients.pt")
        torch.save(loops, f"{folder}/loops.pt")
    dist.destroy_process_group()


class Given(Generator):
    """Gives the images it was made with, whatever the noise."""

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.shape, self.classes = tuple(images.shape[1:]), 10
        self.images = nn.Parameter(images)
        self.position = 0

    def forward(self, noise, condition=None):
        rows = self.images[self.position : self.position + len(noise)]
        self.position = (self.position + len(noise)) % len(self.images)
        return rows
