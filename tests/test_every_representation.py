"""What every registered representation must do."""

import pytest
import torch

import rdm
from rdm.checkpoint import save_checkpoint
from rdm.randomness import seeded
from rdm.registry import networks, representations


def build(name: str, folder) -> list:
    """The representation with each of its examples, weights made for those that need some."""
    if "weights" in representations[name].needs or "checkpoint" in representations[name].needs:
        made = []
        for network in networks:
            with seeded(0):
                module = networks.build(network)
            run = folder / network
            save_checkpoint(run / "checkpoints", 1, {"model": module.state_dict(), "average": None}, keep=1)
            made.append(rdm.representation(name, weights=str(run), network=network))
        return made
    return [rdm.representation(name, **example) for example in representations[name].examples]


@pytest.mark.parametrize("name", rdm.names("representations"))
def test_contract(name, tmp_path):
    g = torch.Generator().manual_seed(0)
    for raw in build(name, tmp_path):
        channels = raw.settings.get("channels", 1)
        items = torch.rand(12, channels, 8, 8, generator=g)
        representation = raw.fitted(items)
        features = representation(items)
        assert features.ndim == 2 and len(features) == 12 and torch.isfinite(features).all()
        # each row depends on its own item alone, whatever the batch
        torch.testing.assert_close(
            torch.cat([representation(x) for x in items.split(5)]), features, rtol=1e-4, atol=1e-5
        )
        # frozen, in evaluation mode, and differentiable in its input
        assert representation.module is not None and not representation.module.training
        assert all(not p.requires_grad for p in representation.module.parameters())
        leaf = items.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(representation(leaf).square().sum(), leaf)
        assert torch.isfinite(gradient).all() and gradient.flatten(1).norm(dim=1).min() > 0
        # identity of the features
        again = {r.fitted(items).fingerprint for r in build(name, tmp_path)}
        assert representation.fingerprint in again


@pytest.mark.parametrize("name", rdm.names("batteries"))
def test_batteries(name, tmp_path):
    if rdm.registry.batteries[name].needs:
        with pytest.raises(ValueError, match="there are none"):
            rdm.battery(name, **{k: str(tmp_path) for k in ("classifier", "judge")})
        return
    items = torch.rand(40, 1, 8, 8)
    battery = rdm.battery(name).fitted(items)
    assert battery.held_out and all(len(r(items)) == 40 for r in (*battery.members, *battery.held_out))
