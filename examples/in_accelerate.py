"""A population's loss in Accelerate: accelerate launch examples/in_accelerate.py."""

import torch
from accelerate import Accelerator

import rdm
from rdm.api import seeded, stream

accelerator = Accelerator(cpu=True)
with seeded(0):
    generator = rdm.generator("mlp", width=32)
population = rdm.Population("energy", "pixels", rdm.dataset("spiral").images, chunk=16, memory="ema")
generator, optimizer = accelerator.prepare(generator, torch.optim.Adam(generator.parameters(), 1e-3))
for step in range(6):
    noise = torch.randn(64, 2, generator=stream(0, "noise", step, 0))  # of all ranks, as `rdm train` draws it
    loss = population.loss(generator, noise.chunk(accelerator.num_processes)[accelerator.process_index])
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
if accelerator.is_main_process:
    torch.save(accelerator.unwrap_model(generator).state_dict(), "in_accelerate.pt")
accelerator.end_training()
