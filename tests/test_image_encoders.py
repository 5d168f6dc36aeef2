"""Image encoders beside their libraries' own forward passes, with real weights where there are some."""

import importlib
import pickle
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rdm
from rdm.api import read_weights, require
from rdm.errors import CorruptFileError, InputError, MismatchError
from rdm.registry import representations
from representations._images import resized
from representations._inception import InceptionV3
from representations._weights import local_file, sha256, untrained
from representations.encoders import ROWS
from tests.peers import peer
from tests.shared_data import folder, pictures

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def library(name: str):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    return require(name, extra="vision", owner="the tests")


def probe(features: torch.Tensor, labels: torch.Tensor, train: int) -> float:
    """Accuracy of a ridge classifier, fitted on the first rows, on the others."""
    x = (features - features[:train].mean(0)) / features[:train].std().clamp_min(1e-12)
    x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    goals = nn.functional.one_hot(labels, 10).double() * 2 - 1
    ridge = 1e-2 * x[:train].square().sum() / x.shape[1] * torch.eye(x.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(x[:train].T @ x[:train] + ridge, x[:train].T @ goals[:train])
    return float(((x[train:] @ solved).argmax(1) == labels[train:]).double().mean())


@pytest.mark.slow
def test_real_encoders_know_real_pictures():
    """Linear probe on Imagenette, 240 pictures to fit and 240 to judge; random weights stay near chance."""
    library("timm")
    rows = np.random.default_rng(0).permutation(2000)[:480]
    images, labels = pictures("imagenette224", "val_jpeg.npz", rows)
    battery = rdm.battery("mobile", folder=str(folder("imagenet_encoders")), micro_batch=60)
    with torch.no_grad():
        found = {r.name: probe(r(images), labels, 240) for r in (*battery.members, *battery.held_out)}
        untrained = rdm.representation("mobilenet", weights="random", width=0.5, size=160)
        chance = probe(untrained(images), labels, 240)
    assert len(found) == 6 and chance < 0.45
    for name, accuracy in found.items():
        assert accuracy >= (0.9 if name.endswith("100") else 0.55), f"{name}: {accuracy:.3f}"


def test_inception_agrees_with_torch_fidelity_layer_by_layer(tmp_path):
    peer("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    ours = InceptionV3().eval().requires_grad_(False)
    for module in ours.modules():
        if isinstance(module, nn.Conv2d):  # activations of order 1 at every depth
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    path = tmp_path / "weights.pth"
    torch.save(ours.state_dict(), path)
    theirs = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))

    eights = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
    encoders = [rdm.representation("inception", weights=str(path), output=o) for o in ("pool3", "logits")]
    outputs = {"ours": {}, "theirs": {}}
    for side, network in (("ours", encoders[0].module.network), ("theirs", theirs)):
        for name, layer in network.named_children():
            layer.register_forward_hook(lambda m, i, o, side=side, name=name: outputs[side].__setitem__(name, o))
    wanted = theirs(eights)
    for encoder, expected in zip(encoders, wanted, strict=True):
        got = encoder(eights / 255)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    layers = [name for name in outputs["ours"] if name.startswith(("Conv2d", "Mixed"))]
    assert len(layers) == 16
    for name in layers:
        expected = outputs["theirs"][name]
        torch.testing.assert_close(
            outputs["ours"][name], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()), msg=name
        )

    # Gradients of the input, through the same network and the same preprocessing.
    normal = (resized(eights / 255, 299, "tensorflow") * 255 - 128) / 128
    leaves = [normal.clone().requires_grad_() for _ in range(2)]
    x = leaves[1]
    for name, layer in theirs.named_children():
        if name.startswith(("Conv2d", "Mixed", "MaxPool")):
            x = layer(x)
    for last in (encoders[0].module.network(leaves[0]), x):
        last.mean((2, 3)).square().sum().backward()
    expected = leaves[1].grad
    torch.testing.assert_close(leaves[0].grad, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_tensorflows_resize_is_that_of_torch_fidelity():
    peer("torch_fidelity")
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    for size in ((32, 32), (299, 299), (500, 333)):
        images = torch.rand(2, 3, *size)
        expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
        torch.testing.assert_close(resized(images, 299, "tensorflow"), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("model", "pool"), [("test_vit", "cls"), ("test_vit3", "attention"), ("test_resnet", "head")])
def test_timm_features_are_timms_own(model, pool):
    timm = library("timm")
    encoder = rdm.representation("timm", model=model, pool=pool, weights="random")
    own = timm.create_model(model, num_classes=0).eval()
    own.load_state_dict(encoder.module.network.state_dict())
    config = timm.data.resolve_model_data_config(own)
    images = torch.rand(2, *config["input_size"])
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = own.forward_features((images - mean) / std)
        expected = expected[:, 0] if pool == "cls" else own.forward_head(expected, pre_logits=True)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_timm_preprocessing_is_pillows_up_to_its_rounding():
    """The transform of timm works on 8-bit pictures by Pillow; ours on floats, differentiably."""
    timm = library("timm")
    from PIL import Image

    encoder = rdm.representation("timm", model="test_vit", weights="random")
    config = timm.data.resolve_model_data_config(encoder.module.network)
    transform = timm.data.create_transform(**{**config, "crop_pct": 1.0})
    eights = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8).repeat(20, 1).repeat(20, 2)
    theirs = torch.stack([transform(Image.fromarray(each)) for each in eights])
    ours = encoder.module.prepare(torch.from_numpy(eights).permute(0, 3, 1, 2) / 255)
    inside = (theirs - ours).abs() * torch.tensor(config["std"]).view(3, 1, 1) * 255
    # bicubic overshoots beyond [0, 255], where 8 bits are cut off: compare where they are not
    assert float(inside.median()) <= 0.5 and float((inside <= 1.01).double().mean()) > 0.9


def test_a_named_layer_is_what_the_network_computes_there():
    library("timm")
    encoder = rdm.representation("timm", model="test_vit", pool="flatten", layer="blocks.1", weights="random")
    own = encoder.module.network.network
    images = torch.rand(1, 3, 160, 160)
    (tokens,) = own.forward_intermediates(
        encoder.module.prepare(images),
        indices=[1],
        intermediates_only=True,
        output_fmt="NLC",
        return_prefix_tokens=True,
    )
    patches, prefix = tokens
    torch.testing.assert_close(encoder(images), torch.cat([prefix, patches], 1).flatten(1))


def test_random_weights_are_the_same_from_threads():
    barrier, found = threading.Barrier(8), []

    def build() -> nn.Module:
        first = nn.Linear(4, 4)
        time.sleep(0.005)  # where another thread would draw
        return nn.Sequential(first, nn.Linear(4, 4))

    def work() -> None:
        barrier.wait()
        found.append(torch.cat([p.detach().flatten() for p in untrained(build).parameters()]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(torch.equal(each, found[0]) for each in found)


@pytest.mark.slow
@pytest.mark.parametrize("model, own", [("RN50", 224), ("RN50x4", 288)])
def test_open_clips_residual_networks_take_their_own_size_alone(model, own):
    """Their attention pools have a fixed grid, as transformers have."""
    library("open_clip")
    encode = rdm.representation("open_clip", model=model, weights="random")
    assert encode.settings["size"] == own and torch.isfinite(encode(torch.rand(1, 3, 40, 30))).all()
    with pytest.raises(InputError, match=rf"'{model}' takes images at {own}, not at 64 .* leave size out"):
        rdm.representation("open_clip", model=model, weights="random", size=64)


def test_open_clip_features_are_open_clips_own():
    open_clip = library("open_clip")
    image = rdm.representation("open_clip", model="ViT-S-32-alt", weights="random")
    text = rdm.representation("open_clip_text", model="ViT-S-32-alt", weights="random")
    with pytest.raises(InputError, match="takes images at 224, not at 64 .* leave size out"):
        rdm.representation("open_clip", model="ViT-S-32-alt", weights="random", size=64)
    own = open_clip.create_model("ViT-S-32-alt").eval()
    state = {f"visual.{k}": v for k, v in image.module[1].state_dict().items()}
    state |= {k: v for k, v in text.module[0].network.state_dict().items() if not k.startswith("visual")}
    own.load_state_dict(state)
    config = open_clip.get_model_preprocess_cfg(own)
    images, tokens = torch.rand(2, 3, *config["size"]), torch.randint(1, 49407, (2, 77))
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(image(images), own.encode_image((images - mean) / std), rtol=1e-5, atol=1e-5)
        expected = own.encode_text(tokens, normalize=True)
        torch.testing.assert_close(text(tokens), expected, rtol=1e-5, atol=1e-5)
    lines = ["a photo of a cat", "ä", "", "long " * 90]
    spoken = rdm.representation("open_clip_text", model="ViT-S-32-alt", weights="random", takes="text")
    spoken.module.tower.load_state_dict(text.module.state_dict())
    given = nn.utils.rnn.pad_sequence([torch.tensor(list(t.encode()), dtype=torch.int64) for t in lines], True)
    ids = open_clip.get_tokenizer("ViT-S-32-alt")(lines)
    torch.testing.assert_close(pickle.loads(pickle.dumps(spoken))(given), text(ids), rtol=1e-5, atol=1e-5)
    assert spoken.fingerprint != text.fingerprint


def test_huggingface_models_load_from_a_folder(tmp_path):
    transformers = library("transformers")
    config = transformers.AutoConfig.for_model(
        "vit",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    own = transformers.AutoModel.from_config(config).eval()
    own.save_pretrained(tmp_path / "mine")
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        hidden = own(pixel_values=(images - mean) / std)
        expected = {"cls": hidden.last_hidden_state[:, 0], "mean": hidden.last_hidden_state[:, 1:].mean(1)}
        expected["pooler"] = hidden.pooler_output
        for pool, features in expected.items():
            encoder = rdm.representation("huggingface", model=str(tmp_path / "mine"), pool=pool)
            torch.testing.assert_close(encoder(images), features)
    assert encoder.settings["weights_sha256"] == sha256(tmp_path / "mine" / "model.safetensors")
    with pytest.raises(InputError, match="has no pooling 'spatial'; it has 'cls', 'mean', 'flatten'"):
        rdm.representation("huggingface", model=str(tmp_path / "mine"), pool="spatial")(images)
    (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has none of model.safetensors"):
        rdm.representation("huggingface", model=str(tmp_path / "mine"))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.loader == "timm"])
def test_rows_of_timm_have_the_width_they_declare(name):
    """The whole architecture on the meta device: shapes without weights."""
    timm = library("timm")
    from representations._images import Preprocess
    from representations.timm_models import TimmEncoder

    row = ROWS[name]
    flexible = (
        {}
        if name == "convnext" or "naflex" in row.arguments["model"]
        else {"dynamic_img_size": True, "dynamic_img_pad": True}
    )
    with torch.device("meta"):
        network = timm.create_model(row.arguments["model"], num_classes=0, **flexible).eval()
        size = row.arguments["size"]
        encoder = TimmEncoder(Preprocess(size), network, row.arguments["pool"], None, owner=name)
        assert encoder(torch.empty(2, 3, size, size)).shape == (2, row.dimension)
    assert timm.get_pretrained_cfg(row.arguments["model"]).hf_hub_id == f"timm/{row.arguments['model']}"
    assert representations[name].notes["dimension"] == str(row.dimension)


def test_the_row_of_fluxs_autoencoder_has_the_width_it_declares():
    library("diffusers")
    from diffusers import AutoencoderKL

    from representations._images import Preprocess
    from representations.autoencoder import LatentEncoder

    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with torch.device("meta"):
        network = AutoencoderKL(**kinds, block_out_channels=[128, 256, 512, 512], latent_channels=16)
        features = LatentEncoder(Preprocess(256), network, 4)(torch.empty(1, 3, 256, 256))
    assert features.shape == (1, ROWS["flux_vae"].dimension)


def test_names_that_do_not_exist_are_answered_with_those_that_do():
    library("timm")
    for name, arguments, message in (
        ("timm", {"model": "test_vitt", "weights": "random"}, "did you mean 'test_vit"),
        ("timm", {"model": "test_vit", "weights": "random", "pool": "attention"}, "it has 'head', 'cls', 'mean'"),
        ("timm", {"model": "test_vit", "weights": "random", "layer": "blocks.99"}, "has no layer 'blocks.99'"),
        ("open_clip", {"model": "ViT-B-32", "tag": "opnai"}, "did you mean 'openai'"),
        ("torchvision", {"model": "resnet1", "weights": "random"}, "did you mean 'resnet18'"),
        ("torchvision", {"model": "squeezenet1_0", "weights": "random"}, "has no linear head; name a layer"),
        ("huggingface", {"model": "vt", "weights": "random"}, "no such type of model"),
    ):
        with pytest.raises(InputError, match=message):
            rdm.representation(name, **arguments)


def test_absent_weights_name_the_file_and_the_place(monkeypatch, tmp_path):
    library("timm")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name, arguments, file in (
        ("siglip2", {}, r"'timm/vit_so400m_patch16_siglip_256.v2_webli' \(model.safetensors\)"),
        (
            "huggingface",
            {"model": "facebook/dinov2-base"},
            r"'facebook/dinov2-base' \(model.safetensors\).*a folder as the",
        ),
        ("inception", {}, "weights-inception-2015-12-05-6726825d.pth"),
        ("torchvision", {"model": "resnet18"}, "resnet18-f37072fd.pth"),
        ("mobilenet", {"weights": str(tmp_path / "none.safetensors")}, "there is no file at"),
    ):
        with pytest.raises(InputError, match=file) as caught:
            rdm.representation(name, **arguments)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        assert "--set allow_download=True in a shell" in str(caught.value) or name == "mobilenet"


def test_weights_of_another_architecture_and_another_hash_are_refused(tmp_path):
    small = rdm.representation("mobilenet", weights="random", width=0.25, size=64)
    path = tmp_path / "small.safetensors"
    save_file({k: v for k, v in small.module[1].state_dict().items() if "num_batches" not in k}, path)
    again = rdm.representation("mobilenet", weights=str(path), width=0.25, size=64, sha256=sha256(path)[:8])
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), small(images)) and again.settings["weights_sha256"] == sha256(path)
    with pytest.raises(
        MismatchError, match=r"135 tensors differ: blocks.0.0.bn1.bias has shape \(8,\), expected \(16,\)"
    ):
        rdm.representation("mobilenet", weights=str(path), width=0.5)
    with pytest.raises(MismatchError) as caught:
        rdm.representation("mobilenet", weights=str(path), width=0.5)
    assert str(caught.value).count("expected") == 10
    with pytest.raises(MismatchError, match="expected 00000000; it is another file or altered"):
        local_file(str(path), "00000000", "x")


@pytest.mark.parametrize("shape", [(32, 32), (375, 500), (299, 299), (640, 410)])
def test_the_clean_resize_is_clean_fids(shape):
    theirs = peer("cleanfid.resize").make_resizer("PIL", False, "bicubic", (299, 299))
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    expected = torch.from_numpy(theirs(picture)).permute(2, 0, 1)[None] / 255
    assert float((resized(image.double(), 299, "clean") - expected).abs().max()) < 1e-6
    assert float((resized(image, 299, "clean") - expected).abs().max()) < 5e-5  # torch's float32 weights
    encoder = rdm.representation("inception", weights="random", resize="clean", size=75)
    assert encoder.settings["resize"] == "clean" and encoder(image).shape == (1, 2048)
    with pytest.raises(InputError, match="inception: resize must be 'tensorflow' or 'clean'; got 'lanczos'"):
        rdm.representation("inception", weights="random", resize="lanczos")


def test_weights_files_are_never_unpickled(tmp_path):
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self):
            return (ran.write_text, ("harm",))

    torch.save({"weight": Harm()}, tmp_path / "harm.pth")
    with pytest.raises(CorruptFileError, match="holds more than tensors, which is never loaded"):
        read_weights(tmp_path / "harm.pth", "x")
    assert not ran.exists()
    (tmp_path / "short.safetensors").write_bytes(b"\x10")
    with pytest.raises(CorruptFileError, match="not a readable weights file"):
        read_weights(tmp_path / "short.safetensors", "x")
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "good.pth")
    assert torch.equal(read_weights(tmp_path / "good.pth", "x")["weight"], torch.ones(2))


def test_the_logits_of_the_mobile_battery_know_the_classes_of_imagenette():
    folder("imagenet_encoders")
    battery = rdm.battery("mobile", logits=True)
    logits = next(m for m in battery.held_out if m.settings.get("output") == "logits")
    images, labels = pictures("imagenette224", "val_jpeg.npz", slice(0, 2000, 50))
    classes = torch.tensor([0, 217, 482, 491, 497, 566, 569, 571, 574, 701])  # of ImageNet, in Imagenette's order
    with torch.no_grad():
        found = logits(images).argmax(1)
    assert (found == classes[labels]).double().mean() > 0.8


def test_the_mobile_battery_at_another_size_and_with_fewer_to_train_on():
    folder("imagenet_encoders")
    battery = rdm.battery("mobile", size=32, training="mobilenetv1_025")
    assert [m.name for m in battery.members] == ["mobilenetv1_025"] and len(battery.held_out) == 5
    assert {m.settings["size"] for m in (*battery.members, *battery.held_out)} == {32}
    with pytest.raises(InputError, match="'squeezenet' is held out"):
        rdm.battery("mobile", training=["squeezenet"])
