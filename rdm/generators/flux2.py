"""FLUX.2 [klein]: pictures from text by the transformer of diffusers, with contexts computed beforehand."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdm.api import Count, InputError, first_line, generators, require, sizes_alone
from rdm.generators.parts.latent import Latents, Vae
from rdm.generators.parts.presets import Rule, follow, load, presets

VAE = Vae("AutoencoderKLFlux2", "black-forest-labs/FLUX.2-klein-4B", "vae/", {}, (0.0,), (1.0,))
RANDOM = "random"
_DOUBLE, _SINGLE = r"^double_blocks\.(\d+)\.", r"^single_blocks\.(\d+)\."
_TO, _TO_SINGLE = r"transformer_blocks.\1.", r"single_transformer_blocks.\1.attn."
_NAMES = "the names of Black Forest Labs become those of diffusers"
PUBLIC = (
    Rule(r"^model\.", "", "iRDM's wrapper"),
    Rule(r"^img_in\.", "x_embedder.", _NAMES),
    Rule(r"^txt_in\.", "context_embedder.", _NAMES),
    Rule(r"^time_in\.in_layer", "time_guidance_embed.timestep_embedder.linear_1", _NAMES),
    Rule(r"^time_in\.out_layer", "time_guidance_embed.timestep_embedder.linear_2", _NAMES),
    Rule(r"^(\w+_modulation\w*)\.lin\.", r"\1.linear.", _NAMES),
    Rule(r"^final_layer\.linear", "proj_out", _NAMES),
    Rule(
        r"^final_layer\.adaLN_modulation\.1", "norm_out.linear", "scale comes first in diffusers, shift here",
        lambda x: x.roll(len(x) // 2, 0),
    ),
    Rule(_DOUBLE + r"img_attn\.([qkv])\.", _TO + r"attn.to_\2.", _NAMES),
    Rule(_DOUBLE + r"txt_attn\.([qkv])\.", _TO + r"attn.add_\2_proj.", _NAMES),
    Rule(_DOUBLE + r"img_attn\.norm\.([qk])\w+\.scale", _TO + r"attn.norm_\2.weight", _NAMES),
    Rule(_DOUBLE + r"txt_attn\.norm\.([qk])\w+\.scale", _TO + r"attn.norm_added_\2.weight", _NAMES),
    Rule(_DOUBLE + r"img_attn\.proj", _TO + "attn.to_out.0", _NAMES),
    Rule(_DOUBLE + r"txt_attn\.proj", _TO + "attn.to_add_out", _NAMES),
    Rule(_DOUBLE + r"img_mlp\.0", _TO + "ff.linear_in", _NAMES),
    Rule(_DOUBLE + r"img_mlp\.2", _TO + "ff.linear_out", _NAMES),
    Rule(_DOUBLE + r"txt_mlp\.0", _TO + "ff_context.linear_in", _NAMES),
    Rule(_DOUBLE + r"txt_mlp\.2", _TO + "ff_context.linear_out", _NAMES),
    Rule(_SINGLE + "linear1", _TO_SINGLE + "to_qkv_mlp_proj", _NAMES),
    Rule(_SINGLE + "linear2", _TO_SINGLE + "to_out", _NAMES),
    Rule(_SINGLE + r"norm\.([qk])\w+\.scale", _TO_SINGLE + r"norm_\2.weight", _NAMES),
    Rule(r"^(?!net\.)", "net.", "public files hold the network alone"),
)  # fmt: skip


def separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values that Black Forest Labs joins in one matrix."""
    apart = {}
    for name, tensor in state.items():
        if name.endswith("_attn.qkv.weight"):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            apart.update({name.replace(".qkv.", f".{letter}."): part for letter, part in parts})
        else:
            apart[name] = tensor
    return apart


def shifted_times(steps: int, tokens: int) -> list[float]:
    """Times from 1 to 0 that stay longer at noise for larger pictures: the published, empirical schedule."""
    large = 0.00016927 * tokens + 0.45666666
    small = 8.73809524e-05 * tokens + 1.89833333
    mu = large if tokens > 4300 else small + (large - small) * (steps - 10) / 190
    even = [1 - i / steps for i in range(steps)]
    return [math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in even] + [0.0]


@generators.register(
    "flux2",
    examples=(
        {
            "size": 32, "layers": 1, "single_layers": 1, "heads": 1, "head_size": 32, "context_size": 8,
            "contexts": RANDOM, "decoder": "none",
        },
    ),
    needs='diffusers: pip install "rdm-torch[latents]"',
)  # fmt: skip
class Flux2(Latents):
    """FLUX.2: the velocity of latents (16 pixels, 128 numbers a latent) given the hidden states of a text.

    The condition is a row of the table of contexts, or the contexts themselves, "n tokens context_size". The text
    encoder is not part of this: its contexts are computed once (iRDM: Qwen3-4B, layers 9, 18 and 27, 48 tokens).

    Shapes: noise n 128 size/16 size/16, condition n (rows) or n tokens context_size -> images n 3 size size. Cost: 2
    flops a parameter and token of picture and text, a step; and the decoder's, 10 Tflops a picture of 512.
    Raises: InputError: diffusers is not installed; a condition without contexts; weights of another network.

    Args:
        contexts: a .npy file "prompts tokens context_size", of which rows are read when they are needed, or "random"
            ones (untrained, for tests); None leaves contexts themselves as the only condition.
        decoder: "pretrained" (in the HuggingFace cache), "none" (items are latents), or a folder of diffusers; by
            default "pretrained" where weights are given, else "none".
        slices: latents decoded at a time.
        weights: a run folder, or a file (.safetensors, .pth) of diffusers, of Black Forest Labs or of iRDM.
    """

    vae = VAE

    def __init__(
        self,
        size: Count = 512,
        layers: Count = 5,
        single_layers: Count = 20,
        heads: Count = 24,
        head_size: Count = 128,
        context_size: Count = 7680,
        contexts: str | None = None,
        steps: Count = 4,
        clamp: bool = True,
        decoder: str | None = None,
        slices: Count = 1,
        weights: str | None = None,
        entry: str | None = None,
    ):
        super().__init__(steps)
        self.clamp, self.shape = clamp, (128, size // 16, size // 16)
        diffusers = require("diffusers", extra="latents", owner="flux2")
        self.net = diffusers.Flux2Transformer2DModel(
            in_channels=128, num_layers=layers, num_single_layers=single_layers, num_attention_heads=heads,
            attention_head_dim=head_size, joint_attention_dim=context_size, guidance_embeds=False,
            axes_dims_rope=(head_size // 4,) * 4,
        )  # fmt: skip
        self._contexts = None if contexts is None else _table(contexts, context_size)
        self.classes = None if self._contexts is None else len(self._contexts)
        load(self, weights, entry)
        self.open_decoder(decoder or (None if weights else "none"), trained=True, slices=slices)

    def from_public(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a public file under the generator's names."""
        return follow(PUBLIC, separate(state))

    def times(self) -> list[float]:
        """The published schedule."""
        return shifted_times(self.steps, self.shape[1] * self.shape[2])

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:  # noqa: D102
        context = self.context(condition, x)
        n, _, rows, columns = x.shape
        picture = torch.cartesian_prod(*(torch.arange(k, device=x.device) for k in (1, rows, columns, 1)))
        text = torch.cartesian_prod(*(torch.arange(k, device=x.device) for k in (1, 1, 1, context.shape[1])))
        out = self.net(
            hidden_states=x.flatten(2).transpose(1, 2), timestep=t, encoder_hidden_states=context,
            img_ids=picture.expand(n, -1, -1), txt_ids=text.expand(n, -1, -1), return_dict=False,
        )[0]  # fmt: skip
        return out.transpose(1, 2).reshape(x.shape)

    def context(self, condition: Tensor | None, like: Tensor) -> Tensor:
        """Contexts of a condition: rows of the table, or what is given."""
        if condition is not None and condition.ndim == 3:
            return condition.to(like)
        if condition is None or self._contexts is None:
            raise InputError(
                'flux2: expected contexts "n tokens size", or contexts=FILE and rows of it; got '
                + ("no condition" if condition is None else "rows and no file")
            )
        if type(condition) is not Tensor:  # one of sizes alone, in a dry run
            return like.new_zeros(len(condition), *self._contexts.shape[1:])
        return torch.from_numpy(self._contexts[condition.cpu().numpy()]).to(like)

    def latents(self, x: Tensor) -> Tensor:
        """Undo the whitening and the 2 x 2 patches: "n (c 2 2) h w -> n c 2h 2w"."""
        assert self._decoder is not None
        norm, config = self._decoder.module.bn, self._decoder.module.config
        x = x * (norm.running_var + config.batch_norm_eps).sqrt().view(-1, 1, 1) + norm.running_mean.view(-1, 1, 1)
        return torch.nn.functional.pixel_shuffle(x, 2)


def _table(contexts: str, size: int) -> np.ndarray:
    """Contexts of prompts, on disk; a dry run, which has none, takes random ones."""
    if contexts == RANDOM or (sizes_alone() and not Path(contexts).exists()):
        return np.random.default_rng(0).standard_normal((16, 48, size), dtype=np.float32)
    try:
        table = np.load(contexts, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"expected contexts in a .npy file; {contexts} is none ({first_line(error)})") from error
    if table.ndim != 3 or table.shape[2] != size or not len(table):
        raise InputError(f"expected contexts (prompts, tokens, {size}) in {contexts}; got {table.shape}")
    return table


presets(
    "flux2",
    Flux2,
    source="black-forest-labs/FLUX.2-klein-4B, epfl-vita/flux2-klein-1step-rdm",
    rows={"flux2_klein_4b": ("3.87B", {"steps": 4})},
)
