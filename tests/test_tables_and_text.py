"""Tables of numbers and lines of text as sources, and encoders that tokenize."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import rdm
from rdm.__main__ import main
from rdm.api import InputError, require
from rdm.data.items import first_item
from rdm.data.source import Form, open_source
from rdm.references.file import Reference

ROWS = np.random.default_rng(0).normal(size=(30, 3)).round(3)
KINDS = np.arange(30) % 4


def written(path: Path, rows: np.ndarray = ROWS) -> Path:
    """The same table in any form."""
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = {"a": rows[:, 0], "class": KINDS[: len(rows)], "b": rows[:, 1], "sold": rows[:, 2]}
        parquet.write_table(pyarrow.table(columns), path)
        return path
    separator = {".tsv": "\t", ".csv": ","}.get(path.suffix, ";")
    lines = [["a", "class", "b", "sold"], *([a, k, b, c] for (a, b, c), k in zip(rows, KINDS, strict=False))]
    path.write_text("\n".join(separator.join(map(str, line)) for line in lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.parquet"])
def test_tables_are_rows_of_features_with_classes(tmp_path, name):
    source = open_source(written(tmp_path / name))
    assert source.kind == "features" and len(source) == 30
    assert np.array_equal([source.read(i) for i in range(30)], ROWS)
    assert [source.label(i) for i in range(30)] == KINDS.tolist()


def test_semicolons_and_words_of_truth(tmp_path):
    (tmp_path / "x.csv").write_text("\ufeffa;b\n1;yes\n2.5;No\n")
    source = open_source(tmp_path / "x.csv")
    assert [source.read(i).tolist() for i in range(2)] == [[1, 1], [2.5, 0]] and source.label(0) == -1


@pytest.mark.parametrize("text, message", [
    ("a,b\n1,red\n", r"row 2, column 'b': expected a number; it is 'red'; make one column of 0 and 1"),
    ("a,b\n1,2\n3,\n", r"row 3, column 'b': expected a number; it is empty; fill it"),
    ("a,b\n1\n", r"row 2 has 1 cells, expected 2"),
    ("a,a\n1,2\n", "distinct names; got a, a"),
    ("1,2\n3,4\n", "head line of names; got numbers"),
    ("a,b\n", "holds no items"),
    ("label\n1\n", "columns of numbers beside the classes"),
])  # fmt: skip
def test_tables_of_other_forms_are_refused(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / "x.csv").read(0)


def test_parquet_with_text_or_gaps_is_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for column, message in ((["x", "y"], "column 'a' holds string"), ([1.0, None], "'a' is empty in 1 rows")):
        parquet.write_table(pyarrow.table({"a": column}), tmp_path / "x.parquet")
        with pytest.raises(InputError, match=message):
            open_source(tmp_path / "x.parquet").read(0)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        open_source(tmp_path / "x.parquet").read(0)


def test_a_table_is_measured_and_judged_as_features_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(1).normal(size=(90, 3))
    written(Path("real.csv"), rows), written(Path("fake.csv"), rows[::-1] + 1)
    assert main("reference real.csv --out r.safetensors".split()) == 0
    assert main("evaluate fake.csv --reference r.safetensors --json j.json".split()) == 0
    assert json.loads(Path("j.json").read_text())["metrics"]["sw/features"]["value"] > 0.5


LINES = "a cat\n\n  a dög runs\r\nthe end\n"


def test_lines_of_text_are_bytes_of_one_length(tmp_path):
    (tmp_path / "x.txt").write_text(LINES)
    source = open_source(tmp_path / "x.txt")
    assert [source.name(i) for i in range(len(source))] == ["line 1", "line 3", "line 4"]
    assert [bytes(source.read(i)).decode() for i in range(3)] == ["a cat", "  a dög runs", "the end"]
    first = first_item(source, Form())
    with pytest.raises(InputError, match="line 1 is 5 long and line 3 is 13 long; give --size"):
        Form().item(source, 1, first)
    item = Form(7).item(source, 1)
    assert item.value.tolist() == [*b"  a d", 0xC3, 0xB6] and item.depth == "text" and item.label == -1
    assert Form(6).item(source, 1).value.tolist() == [*b"  a d", 0], "never half of a character"


def test_objects_have_texts_and_classes(tmp_path):
    held = [{"text": "one", "label": 3}, {"caption": "two"}, "three", {"id": 1}, {"text": "x", "label": "cat"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, held)))
    source = open_source(tmp_path / "x.jsonl")
    assert [bytes(source.read(i)).decode() for i in range(3)] == ["one", "two", "three"]
    assert [source.label(i) for i in range(4)] == [3, -1, -1, -1]
    with pytest.raises(InputError, match="line 4: expected a text"):
        source.read(3)
    with pytest.raises(InputError, match="line 5: 'label': expected a whole number"):
        source.label(4)


def test_texts_are_judged_without_any_weights(tmp_path, monkeypatch):
    """By frequencies of bytes and of their pairs: other words of the same letters differ in pairs."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0).choice
    for name, words in (("real", ["one", "two", "six"]), ("fake", ["eno", "owt", "xis"])):
        Path(f"{name}.txt").write_text("\n".join(" ".join(draw(words, 5)) for _ in range(80)))
    command = "reference real.txt --size 20 --battery token_statistics --set vocabulary=256 --set padding=0 --out r.st"
    assert main([*command.replace("r.st", "r.safetensors").split()]) == 0
    assert Reference.load("r.safetensors").description["form"]["kind"] == "text"
    values = {}
    for name in ("real", "fake"):
        assert main(["evaluate", f"{name}.txt", "--reference", "r.safetensors", "--json", "j.json"]) == 0
        values[name] = json.loads(Path("j.json").read_text())["metrics"]["sw_r/token_statistics"]["value"]
    assert values["fake"] > 3 * values["real"]


def test_a_sentence_encoder_tokenizes_as_its_own_tokenizer_does(tmp_path):
    pytest.importorskip("transformers")
    transformers = require("transformers", owner="the test")
    tokenizers = require("tokenizers", owner="the test")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dög", "runs"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = transformers.BertConfig(vocab_size=8, max_position_embeddings=6, pad_token_id=0, **sizes)
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="needs .*tokenizer.json; there is none"):
        rdm.representation("sentence_encoder", model=str(tmp_path), takes="text")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    texts = ["a cat", "a dög runs", "", "a a a a a a a a"]
    encode = rdm.representation("sentence_encoder", model=str(tmp_path), takes="text")
    by_ids = rdm.representation("sentence_encoder", model=str(tmp_path))
    data = torch.tensor([list(t.encode().ljust(20, b"\0")) for t in texts])
    ids = torch.tensor([[2, 4, 5, 3, 0, 0], [2, 4, 6, 7, 3, 0], [2, 3, 0, 0, 0, 0], [2, 4, 4, 4, 4, 3]])
    torch.testing.assert_close(encode(data), by_ids(ids))
    assert encode.fingerprint != by_ids.fingerprint
    with pytest.raises(InputError, match="give UTF-8 bytes"):
        encode(torch.rand(2, 5))


TRAINED = """
rdm.train.model = @generators.{generator}()
rdm.train.losses = [@losses.matching()]
losses.matching.reference = 'r.safetensors'
losses.matching.objective = @objectives.energy()
losses.matching.population = 16
rdm.train.optimizer = @optimizers.adam
rdm.train.steps = 2
"""


def test_a_generator_trained_from_a_file_of_texts_is_judged_by_it(tmp_path, monkeypatch, capsys):
    """Its items are probabilities of tokens, the reference's are ids; pictures are no texts."""
    monkeypatch.chdir(tmp_path)
    Path("real.txt").write_text("\n".join(f"line {k} of {k * k}" for k in range(40)))
    command = "reference real.txt --size 8 --battery token_statistics --set vocabulary=256 --out r.safetensors"
    assert main(command.split()) == 0
    tokens = "generators.soft_tokens.length = 8\ngenerators.soft_tokens.vocabulary = 256\n"
    Path("x.gin").write_text(TRAINED.format(generator="soft_tokens") + tokens)
    assert main("train x.gin --out run".split()) == 0
    assert main("evaluate run --reference r.safetensors --metrics energy --json j.json -n 12".split()) == 0
    assert json.loads(Path("j.json").read_text())["metrics"]["energy/token_statistics"]["n"] == 12
    np.save("pictures.npy", np.zeros((9, 8, 8), np.uint8))
    assert main("evaluate pictures.npy --reference r.safetensors".split()) == 2
    assert "was made of [8]; give text, not images" in capsys.readouterr().err


def test_a_generator_trained_from_a_table_is_judged_by_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(Path("real.csv"))
    assert main("reference real.csv --out r.safetensors".split()) == 0
    Path("x.gin").write_text(TRAINED.format(generator="mlp") + "generators.mlp.outputs = 3\n")
    assert main("train x.gin --out run".split()) == 2
    assert "give the battery, of identity where items are rows as its own are" in capsys.readouterr().err
    identity = "rdm.battery.members = [@representations.identity()]\nlosses.matching.battery = @rdm.battery()\n"
    Path("x.gin").write_text(Path("x.gin").read_text() + identity)
    assert main("train x.gin --out run".split()) == 0
    assert main("sample run -n 12 --out drawn.npz".split()) == 0
    assert main("evaluate drawn.npz --reference r.safetensors --metrics energy --json j.json".split()) == 0
    assert (
        main("evaluate run --reference r.safetensors --battery identity --metrics energy --json k.json -n 12".split())
        == 0
    )
    one, other = (json.loads(Path(f"{name}.json").read_text())["metrics"] for name in "jk")
    assert one["energy/features"] == pytest.approx(other["energy/identity"], rel=1e-5)
