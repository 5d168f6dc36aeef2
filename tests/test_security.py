"""What SECURITY.md promises, each held by a real attempt: data may run nothing, connect nowhere, write nowhere else."""

import csv
import io
import json
import os
import pickle
import socket
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save

import rdm
from rdm.__main__ import main
from rdm.api import require
from rdm.app.commands import _evaluate, draw_report
from rdm.data.pictures import decode
from rdm.data.source import BrokenItem, Form, open_source
from rdm.data.sources.image_folder import PICTURES
from rdm.errors import InputError, RestrictedError
from rdm.files.store import read_json, read_tensors, write_bytes, write_json, write_tensors
from rdm.judging.evaluation import Judge
from rdm.progress import Reporter, _columns
from rdm.references.file import Reference
from rdm.registry import batteries
from rdm.reports.sweep import print_summary, write_csv
from rdm.reports.sweep_page import write_sweep_report
from rdm.trust import confined, paths_outside

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def picture(seed: int = 0, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A working folder of its own; what an attempt would leave is PWNED in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(at):
    (at / "s").mkdir()
    for i in range(48):
        (at / "s" / f"{i:03}.png").write_bytes(picture(i))
    return at / "s"


@pytest.fixture
def reference(pictures):
    assert main(["reference", "s", "--battery", "untrained", "--split", "0.4", "--out", "r.safetensors"]) == 0
    return "r.safetensors"


HOSTILE = """
from __gin__ import dynamic_registration
import os
import rdm.app.config
os.system.command = 'touch PWNED'
rdm.app.config._plan.model = @os.system()
rdm.app.config._plan.losses = []
rdm.app.config._plan.data = None
rdm.app.config._plan.steps = 1
"""
RUN = """
rdm.train.model = @generators.mlp_flow()
rdm.train.losses = [@losses.flow_matching()]
losses.flow_matching.batch = 4
generators.mlp_flow.width = 8
rdm.train.data = @datasets.digits()
rdm.train.steps = 1
"""


def refused(arguments: list[str], at, capsys, message: str) -> None:
    """The command ends with status 2 and one line that says so; nothing ran."""
    assert main(arguments) == 2, arguments
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("rdm: ") and not (at / "PWNED").exists(), lines


def program(at, monkeypatch, name: str) -> None:
    """Put a program of this name before all others of PATH; it leaves PWNED."""
    (at / "bin").mkdir()
    (at / "bin" / name).write_text(f"#!/bin/sh\necho 10.0; touch {at}/PWNED\n")
    (at / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{at}/bin:/usr/bin:/bin")


def test_a_picture_starts_no_program(pictures, at, monkeypatch, capsys):
    program(at, monkeypatch, "gs")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (pictures / "000.png").write_bytes(EPS)
    assert main(["reference", "s", "--battery", "untrained", "--out", "r.safetensors"]) == 2
    assert "000.png cannot be read" in capsys.readouterr().err and not (at / "PWNED").exists()


def test_pictures_beyond_the_stated_size_are_refused_before_they_are_decoded(tmp_path):
    side = 9500  # squared: above LARGEST, below what Pillow itself refuses
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    (tmp_path / "big.png").write_bytes(bomb.getvalue())
    with pytest.raises(BrokenItem, match="big.png cannot be read"):
        Form().item(open_source(tmp_path), 0)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="89,478,485 pixels"):
        decode(bomb.getvalue())


# What is built at the bidding of data


class Touch:
    """A pickle of it leaves PWNED where it is read."""

    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("localhost", 80),
        lambda: subprocess.run(["touch", "PWNED"]),
        lambda: os.system("touch PWNED"),
        lambda: os.posix_spawn("/bin/touch", ["touch", "PWNED"], {}),
        lambda: pickle.loads(pickle.dumps(Touch())),
        lambda: pickle._loads(pickle.dumps(Touch())),  # type: ignore[attr-defined]  # the one in Python
        input,
    ],
)
def test_a_confined_block_connects_runs_unpickles_and_asks_nothing(attempt, at, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    caught = []

    def attempted() -> None:
        try:
            attempt()
        except RestrictedError as error:
            caught.append(str(error))

    with confined("the file", "do as you please"), confined("a loader in it", "no remedy"):
        attempted()
        thread = threading.Thread(target=attempted)  # a library's own threads are confined too
        thread.start()
        thread.join()
    assert len(caught) == 2 and not (at / "PWNED").exists()
    assert all(text.startswith("the file may not ") and text.endswith("; do as you please") for text in caught)
    assert pickle.loads(pickle.dumps(PICTURES)) == PICTURES  # outside of it nothing changes


def test_paths_that_leave_the_working_folder():
    outside = ["/etc/x", "~/x", "../x", "a/../../x", "C:\\x", "\\\\host\\x", "..\\x"]
    assert paths_outside({"a": outside, "b": {"c": ("x", 3, None, "runs/digits", "org/model", "a..b", ".")}}) == outside


# Models


@pytest.fixture
def model(at):
    """A folder of a model whose code would leave PWNED, with a pickle that would too, and real settings of a ViT."""
    require("transformers", extra="text", owner="the tests")
    (at / "m").mkdir()
    (at / "m" / "model.safetensors").write_bytes(save({"x": torch.zeros(1)}, {"format": "pt"}))
    (at / "m" / "c.py").write_text("import pathlib\npathlib.Path('PWNED').touch()\nclass C: pass\nM = C\n")
    torch.save(Touch(), at / "m" / "evil.bin")
    return at / "m"


CODE = {"model_type": "x", "auto_map": {"AutoConfig": "c.C", "AutoModel": "c.M"}}
VIT = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


@pytest.mark.parametrize("loader", ["huggingface", "sentence_encoder"])
@pytest.mark.parametrize(
    "settings, message",
    [
        (CODE, "transformers cannot read"),
        ({**VIT, "transformers_weights": "evil.bin"}, "asks for transformers_weights"),
        ({**VIT, "attn_implementation": "somebody/kernel"}, "asks for attn_implementation 'somebody/kernel'"),
        ({**VIT, "inner": {"_attn_implementation": "flash_attention_2"}}, "asks for _attn_implementation"),
        ({**VIT, "quantization_config": {"quant_method": "fp8"}}, "asks for quantization_config"),
        (None, "model.safetensors"),  # a pickle in its place
    ],
)
def test_a_folder_of_a_model_runs_no_code(model, at, capsys, monkeypatch, loader, settings, message):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # the answer that runs it
    (model / "config.json").write_text(json.dumps(settings or VIT))
    if settings is None:
        (model / "model.safetensors").unlink()
        (model / "evil.bin").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=message):
        rdm.representation(loader, model="m")
    assert not (at / "PWNED").exists() and "custom code" not in capsys.readouterr().out


@pytest.mark.parametrize("loader", ["huggingface", "sentence_encoder"])
@pytest.mark.parametrize(
    "name, value",
    [
        ("trust_remote_code", True),
        ("weights_only", False),
        ("auto_map", CODE["auto_map"]),
        ("attn_implementation", "somebody/kernel"),
        ("_attn_implementation", "somebody/kernel"),
        ("name_or_path", "m"),
        ("transformers_weights", "evil.bin"),
    ],
)
def test_arguments_of_transformers_are_hyperparameters_alone(model, at, monkeypatch, loader, name, value):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    kind = {"huggingface": "vit", "sentence_encoder": "bert"}[loader]
    with pytest.raises(InputError, match=f"declares no {name!r}"):
        rdm.representation(loader, model=kind, weights="random", arguments={name: value})
    if loader == "huggingface":
        (model / "config.json").write_text(json.dumps(CODE))
        with pytest.raises(InputError, match='arguments configure weights="random"'):
            rdm.representation(loader, model="m", arguments={name: value})
    assert not (at / "PWNED").exists()


@pytest.mark.parametrize(
    "loader, kind, arguments",
    [
        ("timm", "test_vit", {"checkpoint_path": "m/evil.bin"}),
        ("timm", "test_vit", {"pretrained": True, "pretrained_cfg_overlay": {"file": "m/evil.bin"}}),
        ("timm", "test_vit", {"pretrained_cfg": {"file": "m/evil.bin"}}),
        ("timm", "test_vit", {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x.pth"}}),
        ("timm", "test_vit", {"cache_dir": "m"}),
        ("torchvision", "resnet18", {"pretrained": True}),
        ("torchvision", "resnet18", {"weights": "DEFAULT"}),
    ],
)
def test_arguments_name_no_weights(model, at, loader, kind, arguments):
    require(loader, extra="vision", owner="the tests")
    with pytest.raises(InputError, match="arguments may not hold"):
        rdm.representation(loader, model=kind, weights="random", arguments=arguments)
    assert not (at / "PWNED").exists()


@pytest.mark.parametrize("loader, kind", [("timm", "test_vit"), ("torchvision", "resnet18"), ("open_clip", "RN50")])
def test_weights_are_never_unpickled(model, at, loader, kind):
    require(loader, extra="vision", owner="the tests")
    with pytest.raises(InputError, match="holds more than tensors, which is never loaded"):
        rdm.representation(loader, model=kind, weights="m/evil.bin")
    assert not (at / "PWNED").exists()


@pytest.fixture
def hub(at, monkeypatch):
    """A listening socket in place of the hub, and caches that are empty; who connects is found at the end."""
    import huggingface_hub.constants as constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(at / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(at / "hub"))
        monkeypatch.setenv("no_proxy", "*")
        yield
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    "loader, kind",
    [
        *((loader, kind) for loader in ("timm", "open_clip") for kind in ("hf-hub:somebody/model", "local-dir:m")),
        pytest.param("open_clip", "roberta-ViT-B-32", marks=pytest.mark.slow),  # its text tower is one of the hub's
    ],
)
def test_names_of_models_reach_neither_folders_nor_the_hub(model, hub, loader, kind):
    require(loader, extra="vision", owner="the tests")
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(InputError):
        rdm.representation(loader, model=kind, weights="random")


ENCODER = """
losses.matching.objective = @objectives.frechet()
losses.matching.battery = @rdm.battery()
rdm.train.losses = [@losses.matching()]
rdm.battery.members = [@representations.{0}()]
"""


@pytest.mark.parametrize(
    "encoder, bindings",
    [
        ("huggingface", "representations.huggingface.model = 'somebody/model'"),
        ("sentence_encoder", ""),
        ("siglip2", ""),
        ("inception", ""),
        ("torchvision", "representations.torchvision.model = 'resnet18'"),
        ("open_clip", "representations.open_clip.model = 'ViT-B-32'\nrepresentations.open_clip.tag = 'openai'"),
    ],
)
def test_restricted_mode_fetches_nothing(at, hub, capsys, encoder, bindings):
    allowed = f"representations.{encoder}.allow_download = True\n"
    (at / "a.gin").write_text(RUN + ENCODER.format(encoder) + allowed + bindings)
    refused(["train", "a.gin", "--restricted", "--out", "o"], at, capsys, "what a.gin names may not fetch")


# Gin files and run folders


@pytest.mark.filterwarnings("ignore:s. left out. 1 of suffix '.gin'")
def test_a_configuration_among_pictures_is_not_read(reference, pictures, at, capsys):
    (pictures / "config.gin").write_text(HOSTILE)
    assert main(["evaluate", "s", "--reference", reference, "--metrics", "fd"]) == 0
    refused(["evaluate", "s"], at, capsys, "expected a run at s (config.gin and a checkpoint); there is none")
    (pictures / "checkpoints" / "00000001").mkdir(parents=True)  # what looks like a run is read, but restricted
    for more in ([], ["--reference", reference]):
        refused(["evaluate", "s", *more], at, capsys, "restricted mode refuses 'from __gin__ import dynamic_registr")
        refused(["evaluate", "s", *more], at, capsys, "give --trust-config")


def test_a_run_that_imports_is_evaluated_when_the_user_vouches_for_it(at, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(at))
    (at / "mine_of_this_test.py").write_text("import pathlib; pathlib.Path('PWNED').touch()\n")
    (at / "run" / "checkpoints" / "00000001").mkdir(parents=True)
    (at / "run" / "config.gin").write_text("import mine_of_this_test\n" + RUN)
    refused(["evaluate", "run"], at, capsys, "refuses 'import mine_of_this_test'; give --trust-config")
    assert main(["evaluate", "run", "--trust-config"]) == 2 and (at / "PWNED").exists()
    assert "binds no rdm.train.evaluation" in capsys.readouterr().err


# Reference files


def rewritten(path: str, change) -> None:
    """A reference with other metadata, its hash made right again."""
    tensors, description = read_tensors(Path(path))
    change(description)
    write_tensors(Path(path), tensors, description)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("sim", {"allow_download": True}, "are not in"),  # what a file says of it counts for nothing
        ("sim", {"weights": {"clip": "/etc/passwd"}}, "r.safetensors would open '/etc/passwd', which is not below"),
        ("mobile", {"folder": "~"}, "would open '~'"),
        ("digits", {"classifier": "../runs/x"}, "if you mean it"),
    ],
)
def test_a_reference_fetches_nothing_and_opens_nothing_elsewhere(reference, hub, at, capsys, name, arguments, message):
    rewritten(reference, lambda description: description.update(battery={"name": name, "arguments": arguments}))
    refused(["evaluate", "s", "--reference", reference], at, capsys, message)


def test_what_the_user_gives_goes_before_what_a_reference_says(reference, at, capsys):
    """A path of the user's own is no business of the file's, and may lie anywhere."""
    rewritten(reference, lambda d: d.update(battery={"name": "digits", "arguments": {"classifier": "/a"}}))
    given = ["--set", f"classifier={at}/none"]
    refused(["evaluate", "s", "--reference", reference, *given], at, capsys, f"expected weights at {at}/none")
    assert main(["evaluate", "s", *given]) == 2 and "--set needs --reference" in capsys.readouterr().err


def test_a_download_that_the_user_allowed_is_not_written_into_the_reference(pictures):
    def fetching(allow_download: bool = False) -> rdm.Battery:
        return batteries.build("untrained")

    command = ["reference", "s", "--battery", "fetching", "--set", "allow_download=True", "--out", "f.safetensors"]
    with batteries.temporarily():
        batteries.register("fetching")(fetching)
        assert main(command) == 0
    assert Reference.load(Path("f.safetensors")).description["battery"] == {"name": "fetching", "arguments": {}}


@pytest.mark.parametrize(
    "name, kind",
    [("x.npy", "array"), ("x.npz", "array"), ("x.npz", "pickle"), ("x.safetensors", "torch"), ("x.tar", "pickle")],
)
def test_data_references_and_checkpoints_are_never_unpickled(pictures, at, capsys, name, kind):
    objects = np.array([Touch()], dtype=object)
    buffer = io.BytesIO()
    if kind == "pickle":
        buffer.write(pickle.dumps(Touch()))
    elif kind == "torch":
        torch.save(Touch(), buffer)
    else:
        (np.savez if name.endswith("z") else np.save)(buffer, objects, allow_pickle=True)
    (at / name).write_bytes(buffer.getvalue())
    held = at / "run" / "checkpoints" / "00000001"
    held.mkdir(parents=True)
    (held / "state.safetensors").write_bytes(buffer.getvalue())
    (held / "state.json").write_text("{}")
    (at / "x.gin").write_text(RUN)
    (at / "run" / "config.gin").write_text(RUN)
    for command in (
        ["reference", name, "--out", "r.safetensors"],
        ["reference", name, "--battery", "untrained", "--out", "r.safetensors"],
        ["evaluate", "s", "--reference", name],
        ["evaluate", "run", "--reference", name],
        ["evaluate", "run"],
    ):
        assert main(command) == 2, command
        said = capsys.readouterr().err.strip().splitlines()  # a line, and for a file of no form the forms that are read
        assert not (at / "PWNED").exists() and (len(said) == 1 or "what is read:" in said[0]), command


# Names


@pytest.mark.parametrize(
    "names, message",
    [
        (["x/../../../../victim"], "may not be empty nor hold"),
        (["..\\victim"], "may not be empty nor hold"),
        ([".."], "may not be empty"),
        ([""], "may not be empty"),
        (["a\x1b[31m"], "may not be empty nor hold"),
        (["n" * 300], "has at most 150 bytes; got 300"),
        (["this run"], "'this run' and 'this run' would share a file"),
        (["Fresh real"], "would share a file"),
        (["a", "A"], "would share a file"),
        (["a: b"], "may not be empty"),
    ],
)
def test_names_that_cannot_be_files_are_refused_when_the_evaluation_is_built(at, capsys, names, message):
    compared = ", ".join(f"{name!r}: @generators.mlp_flow()" for name in names)
    evaluation = f"""
rdm.train.evaluation = @rdm.evaluation()
rdm.evaluation.reference = @datasets.digits()
rdm.evaluation.fresh = @datasets.digits()
rdm.evaluation.battery = @rdm.battery()
rdm.battery.members = [@representations.pixels()]
rdm.evaluation.metrics = {{'fd': @objectives.frechet()}}
rdm.evaluation.compare = {{{compared}}}
"""
    (at / "a.gin").write_text(RUN + evaluation)
    refused(["train", "a.gin", "--restricted", "--out", "deep/er/o"], at, capsys, message)
    assert sorted(path.name for path in at.iterdir()) == ["a.gin"]  # not even the run folder


def test_pictures_go_into_the_run_folder_alone(at):
    """Whatever an evaluation calls them, and wherever the folder's own links lead."""

    class Drawing(Judge):
        def __init__(self, *names):
            self.names = names

        def __call__(self, generator):
            return {}

        def pictures(self, generator):
            return dict.fromkeys(self.names, picture())

    model = rdm.generator("mlp")
    with pytest.raises(InputError, match="pictures of the evaluation: a name may not be empty nor hold"):
        _evaluate(Drawing("x/../../victim"), model, at / "run")
    (at / "elsewhere").mkdir()
    (at / "run").mkdir()
    (at / "run" / "samples").symlink_to(at / "elsewhere")
    with pytest.raises(InputError, match="is a link to elsewhere"):
        _evaluate(Drawing("a"), model, at / "run")
    assert sorted(path.name for path in at.rglob("*")) == ["elsewhere", "run", "samples"]


HOSTILE_NAMES = [
    "a[/b]",
    "[red]a",
    "$\\frac{$",
    "$x$",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "+1+1",
    "-2+3",
    "\x1b[31mRED\x07",
    "abc\u202edef",
]


def a_sweep(folder, names) -> None:
    points = [{"labels": {names[0]: name}, "bindings": [], "folder": f"points/{i}"} for i, name in enumerate(names)]
    write_json(folder / "sweep.json", {"file": "x", "axes": [names[0]], "goals": {}, "points": points})
    for i in range(len(names)):
        metric = {"value": 1.0 + i, "low": 0.5, "high": 9.0, "n": 4, "seed": 0}
        result = {"metrics": dict.fromkeys(names, metric), "seconds": 1.0}
        write_json(folder / "points" / str(i) / "result.json", result)
        write_bytes(folder / "points" / str(i) / "samples" / f"compare {i}.png", picture())


def test_names_of_a_sweep_stay_text_everywhere(at, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    a_sweep(at / "w", HOSTILE_NAMES)
    print_summary(at / "w")
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown and r"\x1b[31mRED\x07" in shown and r"abc\u202edef" in shown
    assert all(name in shown for name in HOSTILE_NAMES[:9])
    with write_csv(at / "w").open(newline="") as file:
        cells = {text for row in csv.reader(file) for text in row}
    assert {"'=cmd|' /C calc'!A0", "'@SUM(1+1)*cmd", "'+1+1", "'-2+3"} <= cells
    assert not [text for text in cells if text.startswith(("=", "+", "-", "@"))]
    page = write_sweep_report(at / "w").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page


def test_points_of_a_sweep_lie_in_its_folder(at):
    a_sweep(at / "w", HOSTILE_NAMES)
    for place in ("../x", "/etc", "points/../../x"):
        index = read_json(at / "w" / "sweep.json")
        index["points"][0]["folder"] = place
        write_json(at / "w" / "sweep.json", index)
        with pytest.raises(InputError, match="outside the sweep's folder"):
            write_sweep_report(at / "w")


def test_a_result_is_escaped_and_of_its_form(at, capsys):
    """Of a run folder that somebody else wrote: its names are shown, what is no number is refused."""
    metric = {"value": 1.0, "low": 0.5, "high": 9.0, "n": 4, "seed": 0}
    script = "<script>alert(1)</script>"
    result = {"metrics": {f"{name}: m": metric for name in HOSTILE_NAMES} | {"m": metric}, "steps": 1, "seconds": 1.0}
    result |= {"seed": 0, "versions": {"rdm": script, "torch": script}}
    (at / "run").mkdir()
    names = {f"distance/{name}": 1.0 for name in HOSTILE_NAMES} | dict.fromkeys(HOSTILE_NAMES, 2.0)
    (at / "run" / "log.jsonl").write_text(json.dumps({"step": 1, **names}) + "\n")
    (at / "run" / "config.gin").write_text(script)
    write_json(at / "run" / "result.json", result)
    page = draw_report(at / "run").read_text()
    assert page.count("<script>") == 1 and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    for change in (
        {"steps": script},
        {"seed": script},
        {"seconds": script},
        {"metrics": {"m": {**metric, "n": script}}},
    ):
        write_json(at / "run" / "result.json", {**result, **change})
        refused(["report", "run"], at, capsys, "it is damaged or forged: train or evaluate again")


def test_names_of_a_reference_stay_text(reference, pictures, at, capsys):
    rewritten(reference, lambda description: description.update(data="[/nope]\x1b[31m"))
    assert main(["evaluate", "s", "--reference", reference, "--metrics", "fd", "--json", "j.json"]) == 0
    assert r"[/nope]\x1b[31m" in capsys.readouterr().out.replace("\n", "") and (at / "j.json").exists()
    (pictures / "x\x1b[31mRED\x07.png").write_bytes(b"no picture")
    assert main(["evaluate", "s", "--reference", reference]) == 2
    said = capsys.readouterr().err
    assert r"x\x1b[31mRED\x07.png" in said and "\x1b" not in said
    capsys.readouterr()


def test_time_left_is_by_the_rate_since_the_start(monkeypatch):
    """Points of a sweep end minutes apart, two at a time: 100 s a pair are 200 s for the four that are left."""
    now, output = [0.0], io.StringIO()
    monkeypatch.setattr("rdm.progress.time.monotonic", lambda: now[0])
    console = Console(file=output, force_terminal=True, width=200)
    with Progress(*_columns(), console=console, auto_refresh=False) as bar:
        report = Reporter(bar, 7, 1)
        for now[0], done in ((99.0, 2), (100.0, 3)):
            report.update(done, {})
        bar.refresh()
    assert "3 min left" in output.getvalue()


def test_lines_beside_a_bar_stay_text():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=200)
    with Progress(*_columns(), console=console) as bar:
        report = Reporter(bar, 2, 0)
        report.say("[/x]\x1b[31m")
        report.update(1, {"distance/[/y]\x1b[31m": 1.0})
        bar.refresh()
    assert r"[/x]\x1b[31m" in output.getvalue() and r"[/y]\x1b[31m" in output.getvalue()
    assert "\x1b[31m" not in output.getvalue()
