"""Text as token ids or soft tokens: statistics of tokens and their pairs, and sentence embeddings of transformers."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdm.api import (
    FETCH,
    InputError,
    Inputs,
    MismatchError,
    Representation,
    first_line,
    refuse_if_confined,
    representations,
    require,
    tokens,
)
from representations._tokenizer import BYTES, Tokenized
from representations._transformers import configured, loaded

TINY = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FILES = "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json"


@representations.register(
    "token_statistics",
    examples=(
        {"vocabulary": 20, "unigrams": 8, "bigrams": 16},
        {"vocabulary": 20, "unigrams": 8, "bigrams": 15, "padding": 0},
    ),
)
def token_statistics(
    vocabulary: int,
    unigrams: int = 256,
    bigrams: int = 256,
    padding: int | None = None,
    seed: int = 0,
    name: str = "token_statistics",
) -> Representation:
    r"""Frequencies of tokens through a random projection, and of adjacent pairs through a tensor sketch.

    .. math:: u = \frac{1}{T} \sum_t G^\top p_t, \qquad
              b = \frac{1}{T - 1} \sum_t F^{-1} \big( F(S_1^\top p_t) \odot F(S_2^\top p_{t+1}) \big)

    p_t is the one-hot vector of token t, or its probabilities: soft tokens carry the gradient, and their pairs are as
    if drawn independently. G is Gaussian of variance 1 / unigrams; S_1 and S_2 are count sketches, one random sign a
    row in a random column; F is the Fourier transform. Inner products of u and of b are those of the frequencies
    themselves in the mean over `seed`. Source: Pham and Pagh (2013), "Fast and Scalable Polynomial Kernels via Explicit
    Feature Maps". The token `padding` fills up short texts and counts nowhere; no count is below 1.

    Shapes: ids n t, or soft tokens n t vocabulary -> n (unigrams + bigrams). Cost: n t (unigrams + bigrams log
    bigrams), for soft tokens n t vocabulary (unigrams + 2 bigrams).
    Raises: InputError: sizes below 1, padding that is no token.
    """
    if min(vocabulary, unigrams, bigrams) < 1 or not (padding is None or 0 <= padding < vocabulary):
        raise InputError(
            "expected vocabulary, unigrams and bigrams >= 1 and padding below vocabulary; "
            f"got {vocabulary}, {unigrams}, {bigrams} and {padding}"
        )
    settings = {
        "vocabulary": vocabulary,
        "unigrams": unigrams,
        "bigrams": bigrams,
        "padding": padding,
        "seed": seed,
    }
    return Representation(name, _TokenStatistics(**settings), settings, inputs=tokens(vocabulary))


class _TokenStatistics(nn.Module):
    counted: Tensor
    projection: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, vocabulary: int, unigrams: int, bigrams: int, padding: int | None, seed: int):
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        counted = torch.ones(vocabulary, 1)
        if padding is not None:
            counted[padding] = 0
        normal = torch.randn(vocabulary, unigrams, generator=source) / unigrams**0.5
        sketches = [_count_sketch(vocabulary, bigrams, source) for _ in range(2)]
        self.register_buffer("counted", counted)
        self.register_buffer("projection", normal * counted)  # padding adds nothing to any sum
        self.register_buffer("first", sketches[0] * counted)
        self.register_buffer("second", sketches[1] * counted)

    def forward(self, items: Tensor) -> Tensor:
        counted = _embed(items, self.counted)[:, :, 0]
        unigrams = _embed(items, self.projection).sum(1) / counted.sum(1, keepdim=True).clamp(min=1)
        after = torch.fft.rfft(_embed(items, self.second)).roll(-1, 1)
        after[:, -1] = 0  # nothing follows the last token
        spectrum = (torch.fft.rfft(_embed(items, self.first)) * after).sum(1)
        pairs = (counted[:, :-1] * counted[:, 1:]).sum(1, keepdim=True).clamp(min=1)
        return torch.cat([unigrams, torch.fft.irfft(spectrum, n=self.first.shape[1]) / pairs], 1)


def _count_sketch(rows: int, columns: int, source: torch.Generator) -> Tensor:
    column = torch.randint(columns, (rows, 1), generator=source)
    sign = torch.randint(2, (rows, 1), generator=source) * 2.0 - 1
    return torch.zeros(rows, columns).scatter_(1, column, sign)


def _embed(items: Tensor, table: Tensor) -> Tensor:
    """Rows of the table "vocabulary d" by ids "n t", or their mean under probabilities "n t vocabulary"."""
    return items @ table.to(items) if items.is_floating_point() else table[items]


@representations.register(
    "sentence_encoder",
    examples=(
        {"model": "bert", "weights": "random", "arguments": TINY},
        {"model": "bert", "weights": "random", "arguments": TINY, "takes": "embeddings", "normalize": False},
    ),
    needs='transformers: pip install "rdm-torch[text]"',
)
def sentence_encoder(
    model: str = "sentence-transformers/all-MiniLM-L6-v2",
    takes: Literal["tokens", "embeddings", "text"] = "tokens",
    pool: Literal["mean", "first"] = "mean",
    normalize: bool = True,
    padding: int | None = None,
    weights: Literal["pretrained", "random"] = "pretrained",
    allow_download: bool = False,
    arguments: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Representation:
    """Sentence embeddings: the last layer of a text encoder of transformers, pooled over the tokens of each text.

    Source: Reimers and Gurevych (2019), "Sentence-BERT". `model` is a local folder or a name on the HuggingFace hub,
    read from its cache (fetched into it with `allow_download`) from safetensors alone; no code that comes with a model
    is run. With weights="random" it is a type of model ("bert"), configured by `arguments`. Items are ids of the
    model's own tokenizer, or soft tokens for a gradient, which are mixed in the table of embeddings; with
    takes="embeddings", vectors in place of that table's; with takes="text", UTF-8 bytes (0 after the end), as files of
    lines are read, which its `tokenizer.json` makes ids of, without a gradient. Positions that hold `padding` (the
    model's own by default) are neither attended to (soft ones: from probability 1/2) nor pooled (soft ones: in
    proportion).

    Args:
        model: name, folder or type.
        takes: what items are.
        pool: mean over the tokens, or the first token.
        normalize: to length 1.
        padding: the id that fills up short texts.
        weights: "pretrained" or "random".
        allow_download: fetch what is not in the cache.
        arguments: of the configuration of random weights.
        name: how tables call it.

    Shapes: ids n t, soft tokens n t vocabulary, embeddings n t width or bytes n t -> n width. Cost: one forward pass.

    Raises:
        InputError: no model there (where it was looked for), no encoder, an unknown pooling, texts too long.
        MismatchError: weights that lack tensors of the model.
    """
    owner = f"sentence encoder {model!r}"
    if (
        takes not in ("tokens", "embeddings", "text")
        or pool not in ("mean", "first")
        or weights not in ("pretrained", "random")
    ):
        raise InputError(
            f'{owner}: expected takes "tokens", "embeddings" or "text", pool "mean" or "first" and weights '
            f'"pretrained" or "random"; got {takes!r}, {pool!r} and {weights!r}'
        )
    library = require("transformers", extra="text", owner=owner)
    if weights == "random":
        folder, network = Path(model), _encoder(configured(library, model, arguments or {}, owner), owner)
    else:
        folder = _folder(model, allow_download, owner)
        network = _pretrained_network(library, folder, owner)
    table = network.get_input_embeddings().weight
    padding = getattr(network.config, "pad_token_id", None) if padding is None else padding
    settings = {
        "model": model,
        "takes": takes,
        "pool": pool,
        "normalize": normalize,
        "padding": padding,
        "weights": weights,
    }
    inputs = tokens(len(table))
    if takes == "embeddings":
        inputs = Inputs("embeddings of tokens", ("length", table.shape[1]), remedy="give floats of the model's width")
    module = _SentenceEncoder(network, pool, normalize, padding, embedded=takes == "embeddings", owner=owner)
    if takes == "text":
        if padding is None:
            raise InputError(f"{owner}: its configuration names no padding; give padding=, the id of its [PAD]")
        inputs, module = BYTES, Tokenized(module, folder, padding, module.longest, owner)
    return Representation(name or Path(model).name, module, settings, inputs=inputs)


class _SentenceEncoder(nn.Module):
    def __init__(self, network: Any, pooling: str, normalize: bool, padding: int | None, *, embedded: bool, owner: str):
        super().__init__()
        self.network, self.pooling, self.normalize, self.padding = network, pooling, normalize, padding
        self.embedded, self.owner = embedded, owner
        self.longest = getattr(network.config, "max_position_embeddings", None)

    def forward(self, items: Tensor) -> Tensor:
        n, length = items.shape[:2]
        if self.longest is not None and length > self.longest:
            raise InputError(f"{self.owner} takes at most {self.longest} tokens a text; got {length}; cut them")
        share = self._share(items)
        attended = (share > 0.5).long()
        attended[:, 0] = 1  # an empty text attends to its first token
        vectors = items if self.embedded else _embed(items, self.network.get_input_embeddings().weight)
        hidden = self.network(inputs_embeds=vectors, attention_mask=attended).last_hidden_state
        share = share.to(hidden)[:, :, None]
        pooled = (hidden * share).sum(1) / share.sum(1).clamp(min=1e-6) if self.pooling == "mean" else hidden[:, 0]
        return nn.functional.normalize(pooled, dim=1) if self.normalize else pooled

    def _share(self, items: Tensor) -> Tensor:
        """How much of each position is text, "n t": all but padding."""
        if self.padding is None or self.embedded:
            return torch.ones(items.shape[:2], device=items.device)
        return 1 - items[:, :, self.padding] if items.is_floating_point() else (items != self.padding).float()


def _folder(model: str, allow_download: bool, owner: str) -> Path:
    """The folder of a model: a local one, or a snapshot in the cache of the hub."""
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    hub = require("huggingface_hub", extra="text", owner=owner)
    cache = require("huggingface_hub.constants", extra="text", owner=owner).HF_HUB_CACHE
    try:
        return Path(hub.snapshot_download(model, allow_patterns=list(FILES), local_files_only=True))
    except Exception as error:
        if not allow_download:
            raise InputError(
                f"{owner} is neither a folder nor in {cache} (config.json, model.safetensors); give a folder that "
                f"holds them, or {FETCH} to fetch them there"
            ) from error
    refuse_if_confined(f"fetch {model!r}")
    try:
        return Path(hub.snapshot_download(model, allow_patterns=list(FILES)))
    except Exception as error:
        raise InputError(
            f"{owner}: cannot fetch it into {cache} ({first_line(error)}); give a folder with "
            "config.json and model.safetensors"
        ) from error


def _pretrained_network(library: ModuleType, folder: Path, owner: str) -> Any:
    network, report = loaded(library, folder, owner)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise MismatchError(
            f"{owner}: weights in {folder} lack {len(missing)} tensors of {type(network).__name__}: "
            f"{', '.join(missing[:10])}"
        )
    return _encoder(network.float(), owner)


def _encoder(network: Any, owner: str) -> Any:
    """The network without the pooler, which is not used and which some weights lack."""
    if network.config.is_encoder_decoder:
        raise InputError(f"{owner} is an encoder with a decoder ({type(network).__name__}); give an encoder of text")
    if getattr(network, "pooler", None) is not None:
        network.pooler = None
    return network
