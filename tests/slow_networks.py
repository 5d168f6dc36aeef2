"""Networks of generators again, straight from their descriptions: loops over heads, patches and tokens, no sharing.

Each takes the tensors of a public file by name. They are slow and for small sizes only.
"""

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def number(t: float, size: int = 256) -> Tensor:
    angles = [t * 10000 ** (-i / (size // 2)) for i in range(size // 2)]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def patches(x: Tensor, patch: int) -> list[Tensor]:
    """Corners of the patches of one picture "c h w", row by row."""
    return [
        x[:, i : i + patch, j : j + patch]
        for i in range(0, x.shape[1], patch)
        for j in range(0, x.shape[2], patch)
    ]  # fmt: skip


def convolve(patch: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([(kernel * patch).sum() for kernel in weight])


def picture(tokens: Tensor, patch: int, channels: int) -> Tensor:
    grid = math.isqrt(len(tokens))
    x = torch.zeros(channels, grid * patch, grid * patch, dtype=tokens.dtype)
    for index, token in enumerate(tokens):
        for k, value in enumerate(token):
            p, q, c = k // (patch * channels), k // channels % patch, k % channels
            x[c, index // grid * patch + p, index % grid * patch + q] = value
    return x


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Neighbouring pairs of "tokens size" as complex numbers, times exp(i angle)."""
    z = torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous()) * torch.exp(1j * angles)
    return torch.view_as_real(z).reshape(x.shape)


def angles_1d(tokens: int, size: int) -> Tensor:
    return torch.tensor(
        [[k * 10000 ** (-2 * i / size) for i in range(size // 2)] for k in range(tokens)], dtype=torch.float64
    )


def angles_2d(grid: int, size: int, prefix: int) -> Tensor:
    """The first half of the pairs turns by the row, the second by the column; the prefix does not turn."""
    frequencies = [10000 ** (-4 * i / size) for i in range(size // 4)]
    rows = [[k // grid * f for f in frequencies] + [k % grid * f for f in frequencies] for k in range(grid**2)]
    return torch.tensor([[0.0] * (size // 2)] * prefix + rows, dtype=torch.float64)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, turn) -> Tensor:
    """Of "tokens (heads size)"."""
    size, mixed = q.shape[1] // heads, []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        a, b = turn(q[:, part], k[:, part])
        mixed.append(torch.softmax(a @ b.T / math.sqrt(size), 1) @ v[:, part])
    return torch.cat(mixed, 1)


def mit(
    s: State, x: Tensor, h: float, omega: float, start: float, end: float, label: int, *, patch: int, heads: int,
    depth: tuple[int, int], plane: bool,
) -> Tensor:  # fmt: skip
    """One picture through the transformer of pMF (`plane`) and iMF."""

    def embed(name: str, value: float) -> Tensor:
        return linear(s, f"{name}.mlp.2.linear", silu(linear(s, f"{name}.mlp.0.linear", number(value))))

    prefix = [
        s["class_tokens"] + s["y_embedder.embedding_table.embedding.weight"][label],
        s["omega_tokens"] + embed("omega_embedder", 1 - 1 / omega),
        s["t_min_tokens"] + embed("cfg_t_start_embedder", start),
        s["t_max_tokens"] + embed("cfg_t_end_embedder", end),
        s["time_tokens"] + embed("h_embedder", h),
    ]
    tokens = []
    for p in patches(x, patch):
        if plane:
            low = convolve(p, s["x_embedder.proj1.weight"]) + s["x_embedder.proj1.bias"]
            tokens.append(s["x_embedder.proj2.weight"][:, :, 0, 0] @ low + s["x_embedder.proj2.bias"])
        else:
            tokens.append(convolve(p, s["x_embedder.proj.weight"]) + s["x_embedder.proj.bias"])
    x = torch.cat([*prefix, torch.stack(tokens)])
    assert len(x) - len(tokens) == 20
    size, grid = x.shape[1] // heads, math.isqrt(len(tokens))
    angles = angles_2d(grid, size, 20) if plane else angles_1d(len(x), size)
    if plane:
        x = x + s["pos_embed"][0]
    for name in [f"shared_blocks.{i}" for i in range(depth[0])] + [f"u_heads.{i}" for i in range(depth[1])]:
        normal = rms(x, s[f"{name}.norm1.weight"])
        q, k, v = (linear(s, f"{name}.attn.{letter}_proj.linear", normal) for letter in "qkv")

        def turn(q, k, name=name):
            q, k = rms(q, s[f"{name}.attn.q_norm.weight"]), rms(k, s[f"{name}.attn.k_norm.weight"])
            return turned(q, angles), turned(k, angles)

        mixed = linear(s, f"{name}.attn.out_proj.linear", attention(q, k, v, heads, turn))
        x = x + s[f"{name}.attn_scale"] * mixed
        normal = rms(x, s[f"{name}.norm2.weight"])
        gate, value = (linear(s, f"{name}.mlp.{w}.linear", normal) for w in ("w1", "w3"))
        x = x + s[f"{name}.mlp_scale"] * linear(s, f"{name}.mlp.w2.linear", silu(gate) * value)
    out = linear(s, "u_final_layer.linear.linear", rms(x[20:], s["u_final_layer.norm.weight"]))
    return picture(out, patch, 3 if plane else 4)


def jit(s: State, x: Tensor, t: float, label: int, *, patch: int, heads: int, depth: int, start: int) -> Tensor:
    """The data that JiT predicts, at its own time: 0 is noise."""
    y = s["y_embedder.embedding_table.weight"][label]
    c = silu(linear(s, "t_embedder.mlp.2", silu(linear(s, "t_embedder.mlp.0", number(t)))) + y)
    context = y + s["in_context_posemb"][0]
    tokens = [
        s["x_embedder.proj2.weight"][:, :, 0, 0] @ convolve(p, s["x_embedder.proj1.weight"]) for p in patches(x, patch)
    ]
    x = torch.stack(tokens) + s["x_embedder.proj2.bias"] + s["pos_embed"][0]
    grid, size = math.isqrt(len(tokens)), x.shape[1] // heads
    for i in range(depth):
        name = f"blocks.{i}"
        if i == start:
            x = torch.cat([context, x])
        angles = angles_2d(grid, size, len(context) if i >= start else 0)
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(s, f"{name}.adaLN_modulation.1", c).chunk(6)
        normal = rms(x, s[f"{name}.norm1.weight"]) * (1 + scale1) + shift1
        q, k, v = linear(s, f"{name}.attn.qkv", normal).chunk(3, 1)

        def turn(q, k, name=name, angles=angles):
            q, k = rms(q, s[f"{name}.attn.q_norm.weight"]), rms(k, s[f"{name}.attn.k_norm.weight"])
            return turned(q, angles), turned(k, angles)

        x = x + gate1 * linear(s, f"{name}.attn.proj", attention(q, k, v, heads, turn))
        gate, value = linear(
            s, f"{name}.mlp.w12", rms(x, s[f"{name}.norm2.weight"]) * (1 + scale2) + shift2
        ).chunk(2, 1)  # fmt: skip
        x = x + gate2 * linear(s, f"{name}.mlp.w3", silu(gate) * value)
    shift, scale = linear(s, "final_layer.adaLN_modulation.1", c).chunk(2)
    out = rms(x[len(context) :], s["final_layer.norm_final.weight"]) * (1 + scale) + shift
    return picture(linear(s, "final_layer.linear", out), patch, 3)


def dit(s: State, x: Tensor, t: float, label: int, *, patch: int, heads: int, depth: int) -> Tensor:
    """What SiT and DiT predict, the first half of the channels, at the network's own time."""
    y = s["y_embedder.embedding_table.weight"][label]
    c = silu(linear(s, "t_embedder.mlp.2", silu(linear(s, "t_embedder.mlp.0", number(t)))) + y)
    channels = len(x)
    tokens = [convolve(p, s["x_embedder.proj.weight"]) + s["x_embedder.proj.bias"] for p in patches(x, patch)]
    x = torch.stack(tokens) + s["pos_embed"][0]
    for i in range(depth):
        name = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(s, f"{name}.adaLN_modulation.1", c).chunk(6)
        q, k, v = linear(s, f"{name}.attn.qkv", layer_norm(x) * (1 + scale1) + shift1).chunk(3, 1)
        x = x + gate1 * linear(s, f"{name}.attn.proj", attention(q, k, v, heads, lambda q, k: (q, k)))
        h = linear(s, f"{name}.mlp.fc1", layer_norm(x) * (1 + scale2) + shift2)
        h = h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + gate2 * linear(s, f"{name}.mlp.fc2", h)
    shift, scale = linear(s, "final_layer.adaLN_modulation.1", c).chunk(2)
    out = linear(s, "final_layer.linear", layer_norm(x) * (1 + scale) + shift)
    return picture(out, patch, 2 * channels)[:channels]
