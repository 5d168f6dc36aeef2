"""A population's loss in a loop of your own: torchrun --nproc-per-node=2 examples/in_ddp.py."""

import torch
from torch.distributed import destroy_process_group, get_rank, get_world_size, init_process_group
from torch.nn.parallel import DistributedDataParallel

import rdm
from rdm.api import seeded, stream

init_process_group("gloo")
with seeded(0):
    generator = DistributedDataParallel(rdm.generator("mlp", width=32))
population = rdm.Population("energy", "pixels", rdm.dataset("spiral").images, chunk=16, memory="ema")
optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
for step in range(6):
    noise = torch.randn(64, 2, generator=stream(0, "noise", step, 0))  # of all ranks, as `rdm train` draws it
    loss = population.loss(generator, noise.chunk(get_world_size())[get_rank()])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if get_rank() == 0:
    torch.save(generator.module.state_dict(), "in_ddp.pt")
destroy_process_group()
