"""Published networks: against slow versions written from their descriptions, and public names, sizes and settings."""

import copy
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rdm
from rdm.api import CorruptFileError, FlowMap, InputError, MismatchError
from rdm.generators.parts.guidance import guided
from rdm.generators.parts.latent import Latents, Vae
from rdm.registry import generators
from rdm.scaling import modules
from tests import slow_networks as slow

LISTINGS = Path(__file__).parent / "listings"
PRESETS = [name for name in generators if "parameters" in generators[name].notes]
FAMILIES = [name for name in generators if generators[name].examples]
PLAIN = "gaussian_mixture", "mlp", "mlp_flow", "soft_tokens"  # without layers that keep much
LISTED = [name for name in FAMILIES if name not in PLAIN]
LABELS = torch.tensor([3, 0])
TINY = {"width": 32, "depth": 3, "heads": 2, "classes": 5}


def built(family: str, **given) -> rdm.Generator:
    """A generator whose every parameter matters: nothing is left at zero or one."""
    torch.manual_seed(0)
    model = rdm.generator(family, **given)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, mean=0.3 if "norm" in name else 0.0, std=0.3 if parameter.ndim == 1 else 0.1)
    return model.double()


def counted(model: rdm.Generator, *inputs: Tensor | None) -> tuple[Tensor, int]:
    """Images, and the bytes kept for the backward pass beside the model's own tensors."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    sizes = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return model(*inputs), sum(sizes.values())


def noise_of(model: rdm.Generator) -> Tensor:
    return torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def listing(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the public checkpoint."""
    found = {}
    for line in (LISTINGS / f"{name}.txt").read_text().splitlines():
        pattern, *shape = line.split()
        span = re.search(r"\{(\d+)-(\d+)\}", pattern)
        indices = range(int(span[1]), int(span[2]) + 1) if span else (None,)
        for i in indices:
            found[re.sub(r"\{.*\}", str(i), pattern)] = tuple(map(int, shape))
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_public_names_shapes_and_size(name):
    with torch.device("meta"):
        model = rdm.generator(name)
        public = {key: torch.empty(shape) for key, shape in listing(name).items()}
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in model.from_public(public).items()} == own
    published = generators[name].notes["parameters"]
    count = float(published[:-1]) * {"M": 1e6, "B": 1e9}[published[-1]]
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(count, rel=0.01)


def test_published_sampling_settings():
    with torch.device("meta"):
        pmf, imf, jit = (rdm.generator(name) for name in ("pmf_h_512", "imf_xl_256", "jit_l_256"))
        one = rdm.generator("jit_l_256", steps=1, clamp=True)
    assert (pmf.guidance, pmf.interval, pmf.noise_scale, pmf.steps, pmf.shape) == (
        5.5,
        (0.1, 0.6),
        4.0,
        1,
        (3, 512, 512),
    )
    assert (imf.guidance, imf.interval, imf.noise_scale, imf.shape) == (8.0, (0.42, 0.62), 1.0, (4, 32, 32))
    assert (jit.guidance, jit.interval, jit.steps, jit.solver, jit.clamp) == (2.4, (0.0, 0.9), 50, "heun", False)
    assert (one.steps, one.clamp, one.guidance) == (1, True, 2.4)
    with pytest.raises(InputError, match="no hyperparameter 'step'; did you mean 'steps'"):
        rdm.generator("pmf_b_256", step=2)
    with pytest.raises(InputError, match="guidance must be a number"):
        rdm.generator("pmf_b_256", guidance="high")


def test_pmf_equals_its_description():
    """Noise scale, guidance and its interval as inputs, no input t; one step is the prediction, two are two jumps."""
    model = built(
        "pmf", size=16, patch=4, bottleneck=6, head_depth=1, guidance=7.0, interval=(0.2, 0.6), noise_scale=2.0, **TINY
    )
    z, state = noise_of(model), {k.removeprefix("net."): v for k, v in model.state_dict().items()}

    def predicted(x, h):
        inputs = {"omega": 7.0, "start": 0.2, "end": 0.6, "patch": 4, "heads": 2, "depth": (2, 1), "plane": True}
        return torch.stack([slow.mit(state, x[i], h, label=int(LABELS[i]), **inputs) for i in (0, 1)])

    torch.testing.assert_close(model(z, LABELS), (predicted(2 * z, 1.0) + 1) / 2, rtol=1e-5, atol=1e-5)
    model.steps = 2
    half = 2 * z - 0.5 * (2 * z - predicted(2 * z, 0.5)) / 1.0
    torch.testing.assert_close(model(z, LABELS), (half - (half - predicted(half, 0.5)) + 1) / 2, rtol=1e-5, atol=1e-5)
    t = torch.full((2,), 0.03, dtype=torch.float64)
    torch.testing.assert_close(model.velocity(z, t, LABELS), (z - predicted(z, 0.0)) / 0.05, rtol=1e-5, atol=1e-5)


def test_imf_equals_its_description():
    model = built("imf", size=32, patch=2, head_depth=1, guidance=7.0, interval=(0.2, 0.6), decoder="none", **TINY)
    z, state = noise_of(model), {k.removeprefix("net."): v for k, v in model.state_dict().items()}
    inputs = {"omega": 7.0, "start": 0.2, "end": 0.6, "patch": 2, "heads": 2, "depth": (2, 1), "plane": False}
    u = torch.stack([slow.mit(state, z[i], 1.0, label=int(LABELS[i]), **inputs) for i in (0, 1)])
    torch.testing.assert_close(model(z, LABELS), (z - u + 1) / 2, rtol=1e-5, atol=1e-5)


def test_jit_equals_its_description_and_its_sampler():
    """In its own time, from noise at 0 to data at 1: guided strictly inside (0.1, 1), Heun, the last step Euler."""
    model = built(
        "jit", size=8, patch=4, bottleneck=6, context=3, start=1, guidance=2.4, interval=(0.0, 0.9), steps=3, **TINY
    )
    z, state = noise_of(model), {k.removeprefix("net."): v for k, v in model.state_dict().items()}

    def velocity(x, t):
        def towards(labels):
            given = {"patch": 4, "heads": 2, "depth": 3, "start": 1}
            data = torch.stack([slow.jit(state, x[i], t, labels[i], **given) for i in (0, 1)])
            return (data - x) / max(1 - t, 0.05)

        conditional = towards(LABELS.tolist())
        return conditional + (1.4 * (conditional - towards([5, 5])) if 0.1 < t < 1 else 0)

    x = z
    for t, end in itertools.pairwise((0.0, 1 / 3, 2 / 3, 1.0)):
        slope = velocity(x, t)
        if end < 1:
            slope = (slope + velocity(x + (end - t) * slope, end)) / 2
        x = x + (end - t) * slope
    torch.testing.assert_close(model(z, LABELS), (x + 1) / 2, rtol=1e-5, atol=1e-5)
    model.steps = 1
    torch.testing.assert_close(model(z, LABELS), (z + velocity(z, 0.0) + 1) / 2, rtol=1e-5, atol=1e-5)


def test_sit_equals_its_description_and_its_sampler():
    """In its own time, from noise at 0 to data at 1; guidance acts on three of four channels."""
    model = built("sit", shape=(4, 4, 4), steps=2, solver="euler", guidance=1.5, decoder="none", **TINY)
    x, state = noise_of(model), {k.removeprefix("net."): v for k, v in model.state_dict().items()}
    z = x
    for t in (0.0, 0.5):
        given = {"patch": 2, "heads": 2, "depth": 3}
        slopes = [
            torch.stack([slow.dit(state, x[i], t, y[i], **given) for i in (0, 1)]) for y in (LABELS.tolist(), [5, 5])
        ]
        slope = slopes[0] + 0.5 * (slopes[0] - slopes[1])
        x = x + 0.5 * torch.cat([slope[:, :3], slopes[0][:, 3:]], 1)
    torch.testing.assert_close(model(z, LABELS), (x + 1) / 2, rtol=1e-5, atol=1e-5)


def test_dit_reads_the_noise_of_its_diffusion_as_a_velocity():
    """Data a single point x0: at every step k the network says (x_k - sqrt(a_k) x0) / sqrt(1 - a_k)."""
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x0 = torch.rand(4, 4, 4, dtype=torch.float64)

    class Point(nn.Module):
        null = 0

        def forward(self, x, step, labels, h):
            low = step.long().clamp(max=998)
            log = kept.log()
            a = (log[low] + (step - low) * (log[low + 1] - log[low])).exp().view(-1, 1, 1, 1)
            return (x - a.sqrt() * x0) / (1 - a).sqrt()

    model = rdm.generator("dit", shape=(4, 4, 4), width=16, depth=1, heads=2, decoder="none", guidance=1.0)
    model.net = Point()
    t = torch.linspace(0.05, 0.99, 12, dtype=torch.float64)
    x = torch.randn(12, 4, 4, 4, dtype=torch.float64)
    exact = (x - x0) / t.view(-1, 1, 1, 1)
    torch.testing.assert_close(model.velocity(x, t, LABELS[:1].expand(12)), exact, rtol=1e-3, atol=2e-3)
    last = model.velocity(x[:1], torch.ones(1, dtype=torch.float64), LABELS[:1])
    assert torch.isfinite(last).all()


def test_guidance_is_of_each_item_and_spares_the_second_pass():
    asked = []

    def velocity(labels):
        asked.append(labels.tolist())
        return labels.double()[:, None] + torch.zeros(3, 2, dtype=torch.float64)

    labels, t = torch.tensor([1, 2, 3]), torch.tensor([0.2, 0.5, 0.9])
    assert guided(velocity, t, labels, 9, 2.0, (0.2, 0.9))[:, 0].tolist() == [1, 2 - 7, 3]
    assert guided(velocity, t, labels, 9, 2.0, (0.0, 1.0))[:, 0].tolist() == [1 - 8, 2 - 7, 3 - 6]
    asked.clear()
    guided(velocity, t, labels, 9, 2.0, (0.95, 1.0))
    guided(velocity, t, labels, 9, 1.0, (0.0, 1.0))
    assert asked == [[1, 2, 3]] * 2
    assert guided(velocity, t, None, 9, 2.0, (0.0, 1.0))[:, 0].tolist() == [9, 9, 9]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gaussian_mixture"])  # which has no parameters
def test_gradients_reach_every_parameter(family):
    model = built(family, **generators[family].examples[0])
    model.clamp = False  # a gradient that a clamp stops is none of the network's
    noise, condition = model.draw(8, torch.Generator().manual_seed(0))
    images = model(noise.double(), condition)
    (images * torch.randn_like(images)).sum().backward()
    without = [k for k, p in model.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert not without


@pytest.mark.parametrize("family", LISTED)
def test_recomputing_keeps_little_and_changes_nothing(family):
    given = dict(generators[family].examples[0])
    given |= {"depth": 6} if "depth" in given else {"layers": 4, "single_layers": 4} if "layers" in given else {}
    kept, gradients = [], []
    for again in (False, True):
        model = rdm.recompute(built(family, **given), again)
        noise, condition = model.draw(4, torch.Generator().manual_seed(0))
        images, bytes_kept = counted(model, noise.double(), condition)
        kept.append(bytes_kept)
        images.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert kept[1] < 0.5 * kept[0]
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch, while it traces
def test_compiled_blocks_give_the_same():
    model = rdm.generator("pmf", **generators["pmf"].examples[0])
    compiled = modules.compiled(rdm.generator("pmf", **generators["pmf"].examples[0]), True)
    state = built("pmf", **generators["pmf"].examples[0]).float().state_dict()
    noise, condition = model.draw(4, torch.Generator().manual_seed(0))
    model.load_state_dict(state)
    compiled.load_state_dict(state)
    torch.testing.assert_close(compiled(noise, condition), model(noise, condition))


PUBLIC_EXTRAS = {
    "net.v_heads.0.norm1.weight": torch.ones(16),
    "net.v_final_layer.norm.weight": torch.ones(16),
    "rope_freqs": torch.ones(3),
}


def test_public_checkpoints_load_strictly(tmp_path):
    """Under the JAX code's names, beside an optimizer's state, with tokens of one more axis."""
    example = generators["pmf"].examples[0]
    model = built("pmf", **example).float()
    public = {}
    for name, tensor in model.state_dict().items():
        name = name.replace(".linear.weight", "._flax_linear.weight").replace(".embedding.", "._flax_embedding.")
        public[name] = tensor[None] if name.endswith("_tokens") else tensor
    assert any("_flax_embedding" in name for name in public)
    path = str(tmp_path / "public.pth")
    torch.save(
        {"model": public | PUBLIC_EXTRAS, "optimizer": {"state": {0: {"step": torch.ones(())}}}, "step": 3}, path
    )
    loaded = rdm.generator("pmf", **example, weights=path)
    noise, condition = model.draw(2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(noise, condition), model(noise, condition))
    torch.save({"model": {}, "model_ema1": public, "model_ema": {"schedule": "edm", "shadows": {"500": public}}}, path)
    for entry in ("model_ema1", "model_ema/shadows/500"):
        loaded = rdm.generator("pmf", **example, weights=path, entry=entry)
        torch.testing.assert_close(loaded(noise, condition), model(noise, condition))
    with pytest.raises(CorruptFileError, match="no entry 'ema'; it has model, model_ema1, model_ema"):
        rdm.generator("pmf", **example, weights=path, entry="ema")


def test_files_of_the_network_alone_and_our_own_names_load(tmp_path):
    example = generators["sit"].examples[0]
    model = built("sit", **example).float()
    noise, condition = model.draw(2, torch.Generator().manual_seed(0))
    for prefix in ("", "net."):
        path = str(tmp_path / "weights.pt")
        torch.save({prefix + k.removeprefix("net."): v for k, v in model.state_dict().items()}, path)
        loaded = rdm.generator("sit", **example, weights=path)
        torch.testing.assert_close(loaded(noise, condition), model(noise, condition))


def test_weights_of_another_size_name_ten_differences_and_code_is_never_loaded(tmp_path):
    example = generators["jit"].examples[0]
    path = str(tmp_path / "other.pth")
    torch.save({"model": rdm.generator("jit", **{**example, "width": 24}).state_dict()}, path)
    with pytest.raises(MismatchError, match="JiT: .* of another architecture, 41 tensors differ: ") as error:
        rdm.generator("jit", **example, weights=path)
    assert str(error.value).count(" has shape ") == 10
    torch.save({"model": {"net.a": Path("x")}}, path)
    with pytest.raises(CorruptFileError, match="more than tensors"):
        rdm.generator("jit", **example, weights=path)


class Decoded(Latents):
    """A state that stays as it is, decoded."""

    vae = Vae(
        "AutoencoderKL", "nobody/nothing", "",
        {
            "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
            "block_out_channels": [8, 16], "norm_num_groups": 4, "latent_channels": 4,
        },
        (0.5, 0.0, -0.5, 1.0), (2.0, 1.0, 3.0, 4.0),
    )  # fmt: skip
    shape, classes, clamp = (4, 4, 4), None, False

    def __init__(self, decoder="random", slices=2):
        super().__init__(1)
        self.gain = nn.Parameter(torch.ones(()))
        self.open_decoder(decoder, trained=True, slices=slices)

    def velocity(self, x, t, condition):
        return x * (1 - self.gain)


def test_the_decoder_is_frozen_differentiable_and_no_part_of_the_model():
    model = Decoded().train()
    vae = model._decoder.module
    assert list(model.state_dict()) == ["gain"] and [k for k, _ in model.named_parameters()] == ["gain"]
    assert not any(p.requires_grad for p in vae.parameters()) and not vae.training
    assert copy.deepcopy(model)._decoder.module is vae
    assert next(model.double()._decoder.module.parameters()).dtype == torch.float64
    z = torch.randn(5, *model.shape, dtype=torch.float64, requires_grad=True)
    mean, scale = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in model.vae[-2:])
    whole = (vae.decode(z * scale + mean).sample + 1) / 2
    torch.testing.assert_close(model(z), whole)
    weights = torch.randn(whole.shape, dtype=torch.float64)
    expected = torch.autograd.grad((whole * weights).sum(), z)[0]
    torch.testing.assert_close(torch.autograd.grad((model(z) * weights).sum(), z)[0], expected)
    images, bytes_kept = counted(model, z)
    assert bytes_kept < 2 * images.nbytes  # states and slices of pictures, nothing of the decoder's inside
    with pytest.raises(InputError, match="weights of 'nobody/nothing' .* fetch nobody/nothing there"):
        Decoded("pretrained")


def test_imf_has_statistics_of_its_latents_by_channel():
    model = rdm.generator("imf", **generators["imf"].examples[0])
    x = torch.zeros(1, 4, 1, 1)
    torch.testing.assert_close(model.latents(x).flatten(), torch.tensor([0.86488, -0.27787343, 0.21616915, 0.3738409]))
    torch.testing.assert_close(
        (model.latents(x + 1) - model.latents(x)).flatten(),
        torch.tensor([4.85503674, 5.31922414, 3.93725398, 3.9870003]),
    )
    sit = rdm.generator("sit", **generators["sit"].examples[0])
    torch.testing.assert_close(sit.latents(x + 1), torch.full((1, 4, 1, 1), 1 / 0.18215))
    torch.testing.assert_close(sit.encode(sit.latents(x + 1)), x + 1)


def test_flux_names_and_schedule_are_those_of_diffusers():
    files = pytest.importorskip("diffusers.loaders.single_file_utils")
    klein = pytest.importorskip("diffusers.pipelines.flux2.pipeline_flux2_klein")
    from diffusers import FlowMatchEulerDiscreteScheduler

    generator = torch.Generator().manual_seed(0)
    native = {}
    for name, shape in listing("flux2_klein_4b").items():
        if not re.search(r"blocks\.[1-9]", name):
            native[f"model.{name}"] = torch.randn(*(max(1, n // 128) * 2 for n in shape), generator=generator)
    model = rdm.generator("flux2", **generators["flux2"].examples[0])
    theirs = files.convert_flux2_transformer_checkpoint_to_diffusers({k[6:]: v for k, v in native.items()})
    own = model.from_public(native)
    assert own.keys() == {f"net.{name}" for name in theirs}
    assert all(torch.equal(own[f"net.{name}"], tensor) for name, tensor in theirs.items())
    with torch.device("meta"):
        big = rdm.generator("flux2_klein_4b")
    for steps in (1, 4):
        big.steps = steps
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        mu = klein.compute_empirical_mu(image_seq_len=1024, num_steps=steps)
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=mu)
        torch.testing.assert_close(torch.tensor(big.times()), scheduler.sigmas)


def test_flux_reads_contexts_by_row(tmp_path):
    import numpy as np

    example = generators["flux2"].examples[0]
    contexts = np.random.default_rng(1).standard_normal((5, 3, 8), dtype=np.float32)
    np.save(tmp_path / "contexts.npy", contexts)
    model = rdm.generator("flux2", **{**example, "contexts": str(tmp_path / "contexts.npy")})
    noise, rows = model.draw(4, torch.Generator().manual_seed(0))
    assert model.classes == 5
    torch.testing.assert_close(model(noise, rows), model(noise, torch.from_numpy(contexts)[rows]))
    with pytest.raises(InputError, match="got no condition"):
        model(noise)
    with pytest.raises(InputError, match=r"\(prompts, tokens, 9\)"):
        rdm.generator("flux2", **{**example, "context_size": 9, "contexts": str(tmp_path / "contexts.npy")})


class ExactMap(FlowMap):
    """The flow map of dx/dt = x."""

    shape, classes, clamp = (1, 1, 1), None, False

    def average_velocity(self, x, r, t, condition):
        h = (t - r).view(-1, 1, 1, 1)
        return x * torch.where(h > 0, -torch.expm1(-h) / h.clamp(min=1e-12), 1.0)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_flow_map_is_exact_in_any_number_of_steps(steps):
    model = ExactMap(steps)
    z = torch.randn(4, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(model(z), (z * math.exp(-1) + 1) / 2)
    torch.testing.assert_close(model.velocity(z, torch.rand(4), None), z)
    r, t = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.9, 0.3, 1.0])
    torch.testing.assert_close(model.jump(z, r, t), z * torch.exp(r - t).double().view(-1, 1, 1, 1), rtol=1e-6, atol=0)


def test_a_unet_takes_squares_of_pixels_as_positions():
    small = {"shape": (3, 8, 8), "channels": 8, "multiples": (1, 2), "blocks": 1}
    model = rdm.generator("unet", patch=2, **small)
    nn.init.normal_(model.outlet[-2].weight)
    x = torch.randn(2, 3, 8, 8)
    seen: list[Tensor] = []
    model.down[0].register_forward_hook(lambda _, given, out: seen.append(out))
    assert model.velocity(x, torch.rand(2), LABELS).shape == x.shape and seen[0].shape == (2, 8, 4, 4)
    with pytest.raises(InputError, match="divisible by 8, which is patch"):
        rdm.generator("unet", patch=4, **{**small, "shape": (3, 12, 12)})
