"""A population's loss in Lightning, by manual optimization; python starts the two processes."""

import lightning
import torch

import rdm
from rdm.api import seeded, stream


class Trained(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        with seeded(0):
            self.generator = rdm.generator("mlp", width=32)
        self.population = rdm.Population("energy", "pixels", rdm.dataset("spiral").images, chunk=16, memory="ema")
        self.automatic_optimization = False

    def training_step(self, step):
        noise = torch.randn(64, 2, generator=stream(0, "noise", step, 0)).chunk(self.trainer.world_size)[
            self.global_rank
        ]
        self.optimizers().zero_grad()
        self.manual_backward(self.population.loss(self.generator, noise))
        self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.Adam(self.generator.parameters(), 1e-3)


trainer = lightning.Trainer(accelerator="cpu", devices=2, max_epochs=1, use_distributed_sampler=False, logger=False)
trainer.fit(Trained(), torch.utils.data.DataLoader(range(6), batch_size=None))
trainer.save_checkpoint("in_lightning_manually.pt", weights_only=True)
