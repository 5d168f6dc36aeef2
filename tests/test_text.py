"""Text: token statistics against counting, sentence embeddings against transformers' own forward."""

import pytest
import torch
from torch import Tensor, nn

import rdm
from rdm.api import require
from rdm.errors import InputError, MismatchError

V = 12
BERT = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 24}  # fmt: skip


def ids(n: int = 6, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(V, (n, length), generator=torch.Generator().manual_seed(seed))


def soft(items: Tensor) -> Tensor:
    return nn.functional.one_hot(items, V).double()


def frequencies(text: list[int], padding: int | None) -> tuple[Tensor, Tensor]:
    """Shares of tokens and of adjacent pairs, counted one by one."""
    single, double = torch.zeros(V, dtype=torch.float64), torch.zeros(V, V, dtype=torch.float64)
    for token in text:
        single[token] += token != padding
    for a, b in zip(text[:-1], text[1:], strict=True):
        double[a, b] += padding not in (a, b)
    return single / single.sum().clamp(min=1), double / double.sum().clamp(min=1)


@pytest.mark.parametrize("padding", [None, 3])
def test_hard_tokens_and_their_one_hot_soft_tokens_have_the_same_features(padding):
    encode = rdm.representation("token_statistics", vocabulary=V, unigrams=7, bigrams=9, padding=padding)
    for length in (1, 2, 9):
        hard = encode(ids(length=length))
        assert hard.dtype == torch.float32 and hard.shape == (6, 16)
        torch.testing.assert_close(encode(soft(ids(length=length)).float()), hard, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [None, 3])
def test_statistics_are_sketches_of_frequencies(padding):
    """Features are linear in the frequencies: the sketch of each pair, found from a text of it alone, adds up."""
    encode = rdm.representation("token_statistics", vocabulary=V, unigrams=7, bigrams=9, padding=padding)
    exact = lambda items: encode(soft(items))  # noqa: E731
    of_token = exact(torch.arange(V)[:, None])[:, :7]
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    of_pair = exact(pairs)[:, 7:].view(V, V, 9)
    items = ids()
    for row, text in zip(exact(items), items.tolist(), strict=True):
        single, double = frequencies(text, padding)
        torch.testing.assert_close(row[:7], single @ of_token)
        torch.testing.assert_close(row[7:], torch.einsum("ab,abd->d", double, of_pair))


def test_inner_products_are_those_of_frequencies_in_the_mean():
    """Over 400 seeds; the tolerance is 4 standard errors of the mean, measured from the draws."""
    items = torch.tensor([[1, 2, 1, 2, 5], [1, 2, 5, 1, 2], [7, 8, 7, 8, 9]])
    single, double = (torch.stack(f) for f in zip(*(frequencies(t, None) for t in items.tolist()), strict=True))
    expected = torch.stack([single @ single.T, double.flatten(1) @ double.flatten(1).T])
    draws = []
    for seed in range(400):
        z = rdm.representation("token_statistics", vocabulary=V, unigrams=16, bigrams=16, seed=seed)(items).double()
        draws.append(torch.stack([z[:, :16] @ z[:, :16].T, z[:, 16:] @ z[:, 16:].T]))
    drawn = torch.stack(draws)
    assert ((drawn.mean(0) - expected).abs() <= 4 * drawn.std(0) / 20 + 1e-12).all()


def test_padding_counts_nowhere_and_order_does():
    encode = rdm.representation("token_statistics", vocabulary=V, padding=0)
    text = torch.tensor([[4, 5, 6]])
    longer = torch.tensor([[4, 5, 6, 0, 0, 0]])
    torch.testing.assert_close(encode(longer), encode(text))
    assert not encode(torch.zeros(1, 4).long()).any()
    turned = encode(text.flip(1))
    torch.testing.assert_close(turned[:, :256], encode(text)[:, :256])
    assert (turned[:, 256:] - encode(text)[:, 256:]).norm() > 0.1


def test_soft_tokens_learn_the_reference_text():
    """Descent on soft tokens through token statistics finds the tokens that the reference alternates."""
    reference = torch.tensor([[1, 2] * 4]).repeat(16, 1)
    encode = rdm.representation("token_statistics", vocabulary=V, unigrams=32, bigrams=64)
    logits = nn.Parameter(0.1 * torch.randn(8, V, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam([logits], lr=0.1)
    population = rdm.Population(rdm.objective("mmd", bandwidth=1.0), encode, reference)
    for _ in range(200):
        optimizer.zero_grad()
        population.backward(lambda z: logits.softmax(1).expand(len(z), 8, V), torch.zeros(4, 1))
        optimizer.step()
    found = logits.argmax(1).tolist()
    assert set(found) == {1, 2} and sum(a != b for a, b in zip(found[:-1], found[1:], strict=True)) >= 6


def test_wrong_tokens_and_settings():
    encode = rdm.representation("token_statistics", vocabulary=V)
    with pytest.raises(InputError, match=r'takes soft tokens "n length 12"'):
        encode(torch.rand(2, 4, 5))
    with pytest.raises(InputError, match="got values from 0 to 12, outside in 1 of 1"):
        encode.check(torch.arange(13)[None])
    with pytest.raises(InputError, match="padding below vocabulary"):
        rdm.representation("token_statistics", vocabulary=V, padding=V)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT with random weights in a folder, and transformers' own module."""
    try:
        transformers = require("transformers", extra="text", owner="the tests")
    except InputError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    network = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("bert", **BERT)).eval()
    network.save_pretrained(folder)
    return folder, network


def test_sentence_embeddings_are_transformers_own(bert):
    folder, network = bert
    items = ids(length=7)
    items[2:, 5:] = 0
    items[4, 1:] = 0
    items[:, 0] = 1
    mask = (items != 0).long()
    with torch.no_grad():
        hidden = network(input_ids=items, attention_mask=mask).last_hidden_state
    mean = torch.stack([row[kept.bool()].mean(0) for row, kept in zip(hidden, mask, strict=True)])
    build = lambda **options: rdm.representation("sentence_encoder", model=str(folder), **options)  # noqa: E731
    torch.testing.assert_close(build(normalize=False)(items), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(build()(items), mean / mean.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(build(pool="first", normalize=False)(items), hidden[:, 0], rtol=1e-5, atol=1e-6)
    # what follows the padding, and how much of it there is, changes nothing
    torch.testing.assert_close(build()(items[4:5, :1]), build()(items[4:5]), rtol=1e-5, atol=1e-6)
    # soft tokens and embeddings
    torch.testing.assert_close(build()(soft(items).float()), build()(items), rtol=1e-5, atol=1e-6)
    full = ids(length=7).clamp(min=1)
    vectors = network.get_input_embeddings().weight[full].detach()
    torch.testing.assert_close(build(takes="embeddings")(vectors), build()(full), rtol=1e-5, atol=1e-6)
    assert build().fingerprint == build().fingerprint != build(pool="first").fingerprint


def test_sentence_models_that_are_absent_or_unfit_are_one_clear_error(bert, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    folder, _ = bert
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    build = lambda **options: rdm.representation("sentence_encoder", **options)  # noqa: E731
    with pytest.raises(InputError, match=r"'nobody/nothing' is neither a folder nor in .*hub.* allow_download=True"):
        build(model="nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"transformers cannot read {tmp_path}/empty"):
        build(model=str(tmp_path / "empty"))
    with pytest.raises(InputError, match="pool must be 'mean' or 'first'"):
        build(model=str(folder), pool="max")
    with pytest.raises(InputError, match="no such type of model"):
        build(model="bertt", weights="random")
    with pytest.raises(InputError, match="an encoder with a decoder"):
        build(model="t5", weights="random", arguments={"num_layers": 1, "d_model": 8, "d_ff": 8, "vocab_size": V})
    with pytest.raises(InputError, match="takes at most 24 tokens a text; got 25; cut them"):
        build(model=str(folder))(ids(length=25))
    (tmp_path / "lacking").mkdir()
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("embeddings.position_embeddings.weight")
    save_file(state, tmp_path / "lacking" / "model.safetensors", {"format": "pt"})
    (tmp_path / "lacking" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(MismatchError, match="lack 1 tensors of BertModel: embeddings.position_embeddings.weight"):
        build(model=str(tmp_path / "lacking"))
