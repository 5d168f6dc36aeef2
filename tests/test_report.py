"""Reports as pages: whole HTML in one file, for eyes and for ears, in both schemes, with links that lead somewhere."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdm.__main__ import main
from rdm.files.pictures import save_compared, save_grid
from rdm.files.records import as_command, note_session
from rdm.files.store import write_json, write_text
from rdm.judging.samples import Verdict
from rdm.matching.metric import Metric
from rdm.registry import EXPERIMENTS
from rdm.reports.chart import chart
from rdm.reports.page import WIDEST, asset, pictured
from rdm.reports.plot import Curve, Group, Mark, Scale, curves, dots
from rdm.reports.run import training
from rdm.reports.sweep_page import write_sweep_report

EMPTY = {"meta", "img", "wbr"}
NAMES = "sw/pixels", "sw/classifier", "accuracy", "spread", "copies"


def a_run(folder: Path, worth: float) -> None:
    """What training leaves behind: log, result, pictures, configuration, provenance."""
    metrics = {}
    for of, factor in (("", worth), ("many steps: ", 1.5), ("fresh real: ", 1.0)):
        for name in NAMES[:2]:
            metrics[of + name] = Metric(factor, factor / 1.2, factor * 1.2, 500, 0)
        metrics |= {f"{of}{name}": Metric(0.9, 0.85, 0.95, 500, 0) for name in NAMES[2:]}
    result = {"metrics": {name: metric._asdict() for name, metric in metrics.items()}, "steps": 400}
    write_json(folder / "result.json", {**result, "seconds": 12.5, "seed": 0, "versions": {"rdm": "1", "torch": "2"}})
    log = [
        {"step": k, "loss": worth / k, "distance/pixels": 2 / k, "lr": 1e-3, "seconds": 3.0 * k} for k in range(1, 40)
    ]
    write_text(folder / "log.jsonl", "".join(f"{json.dumps(row)}\n" for row in log))
    write_text(folder / "config.gin", f"train.steps = 400\nmlp.width = {worth}\n")
    save_grid(folder / "grid.png", torch.rand(4, 1, 8, 8), columns=2)
    png = (folder / "grid.png").read_bytes()
    save_compared(folder / "samples", {"fresh real": png, "many steps": png, "this run": png})
    note_session(folder, "rdm train x.gin --out run", "cpu", {"rdm": "1"}, ranks=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A sweep of two objectives and two seeds, one of which failed, and the reports of all."""
    folder, points = tmp_path_factory.mktemp("made"), []
    for k, (objective, seed) in enumerate((o, s) for o in ("frechet", "mmd") for s in (0, 1)):
        place = f"points/{k:04}"
        labels = {"losses.matching.objective": objective, "rdm.train.seed": seed}
        points.append({"labels": labels, "bindings": [], "folder": place})
        a_run(folder / place, {"frechet": 1.1, "mmd": 3.0}[objective] + 0.01 * seed)
    index = {"file": "s.gin", "axes": ["losses.matching.objective", "rdm.train.seed"], "goals": {"copies": "nan"}}
    write_json(folder / "sweep.json", {**index, "command": "rdm sweep s.gin --out made", "points": points})
    shutil.rmtree(folder / "points/0003/samples")
    (folder / "points/0003/result.json").unlink()
    write_text(folder / "points/0003/error.txt", "Diverged: step 3\n")
    for point in [*sorted((folder / "points").iterdir()), folder]:
        assert main(["report", str(point)]) == 0
    return folder


class Page(HTMLParser):
    """Elements of a page with their attributes and texts; unbalanced ones fail."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.found, self.folder = list[list](), list[tuple[str, dict, str]](), path.parent
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append([tag, dict(attrs), ""])
        assert len(attrs) == len(dict(attrs))
        if tag in EMPTY:
            self.handle_endtag(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data):
        if self.open:
            self.open[-1][2] += data

    def handle_endtag(self, tag):
        name, attributes, text = self.open.pop()
        assert name == tag
        self.found.append((name, attributes, text))
        self.handle_data(text if tag != "title" else "")

    def all(self, tag: str) -> list[tuple[dict, str]]:
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


@pytest.fixture(params=[".", "points/0000", "points/0003"])
def page(request, made) -> Page:
    return Page(made / request.param / "report.html")


def test_nothing_comes_from_outside_and_links_lead_somewhere(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.source)
    for attributes in (attributes for _, attributes, _ in page.found):
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        if "href" in attributes:
            assert attributes["href"].startswith("./") and (page.folder / unquote(attributes["href"])).is_file()
    policy = next(a["content"] for a, _ in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy and len(page.all("script")) == 1
    assert page.all("script")[0][1] == asset("sort.js")


def test_it_can_be_read_aloud(page):
    assert page.all("html")[0][0]["lang"] == "en" and len(page.all("main")) == len(page.all("h1")) == 1
    ids = [a["id"] for _, a, _ in page.found if "id" in a]
    assert len(ids) == len(set(ids)) and all(a["aria-labelledby"] in ids for a, _ in page.all("section"))
    for attributes, text in page.all("svg"):
        assert attributes["role"] == "img" and len(attributes["aria-label"]) > 20 and text.strip()
    assert all(len(a["alt"]) > 10 and a["width"] and a["height"] for a, _ in page.all("img"))
    assert all(a["scope"] in ("col", "row") for a, _ in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) and all(text for _, text in page.all("caption"))
    heads = [text for a, text in page.all("th") if a["scope"] == "col"]
    assert [text for _, text in page.all("button")] == heads, "each sorts, from the keyboard too"


def test_it_follows_the_scheme_and_the_width_of_the_window(page):
    style = page.all("style")[0][1]
    assert "color-scheme: light dark" in style and "@media (prefers-color-scheme: dark)" in style
    light, dark = (set(re.findall(r"(--\w+): #", part)) for part in style.split("@media (prefers-color-scheme: dark)"))
    assert light == dark and set(re.findall(r"var\((--\w+)\)", style)) <= light
    assert page.all("meta")[-1][0]["content"].startswith("width=device-width")
    assert all("rect" not in a for a, _ in page.all("svg")) and not re.search(r"(fill|stroke|color)=", page.source)
    assert "position: sticky" in style and "min(340px, 100%)" in style and "image-rendering: pixelated" in style


def test_a_run_shows_intervals_baselines_the_band_of_real_data_and_where_it_comes_from(made):
    page = Page(made / "points/0000/report.html")
    drawn = {a["aria-label"].partition(":")[0]: a["aria-label"] for a, _ in page.all("svg")}
    assert list(drawn) == ["sw", "accuracy", "spread", "copies", "loss, logarithmic", "distance, logarithmic"]
    for said in ("pixels this run 1.10 [0.92, 1.32]", "many steps 1.50 [1.25, 1.80]", "fresh real 1.00 [0.83, 1.20]"):
        assert said in drawn["sw"]
    assert page.source.count('class="band"') == 5 and page.source.count('class="one"') == 1, "ratios have a line at 1"
    texts = [text for _, text in page.all("tr")]
    assert texts[1] == "sw/pixels1.10[0.92, 1.32]1.50[1.25, 1.80]1.00[0.83, 1.20]"
    assert page.all("h1")[0][1] == "objective = frechet, seed 0"
    assert page.all("p")[0][1] == f"0000, a point of {made.name}"
    said = [text for _, text in page.all("dd")]
    assert (
        said[0] == "rdm train x.gin --out run"
        and "2 ranks" in said[2]
        and said[3:] == ["rdm 1", "0", "12 s with evaluation"]
    )
    assert [a["alt"] for a, _ in page.all("img")] == [f"samples: {x}" for x in ("fresh real", "many steps", "this run")]
    assert "The same at every step: lr 0.001." in page.source


def test_a_sweep_shows_means_marks_baselines_curves_and_links_to_its_points(made):
    page = Page(made / "report.html")
    rows = [text for _, text in page.all("tr")]
    found = next(row for row in rows if row.startswith("frechet"))
    assert "1.10[1.04, 1.17]" in found and "2 of 2" in found, "Student's interval of the two seeds"
    assert [row.partition("1")[0] for row in rows[3:5]] == ["many steps", "fresh real"], "baselines are rows"
    sw = next(a["aria-label"] for a, _ in page.all("svg") if a["aria-label"].startswith("sw/pixels"))
    assert "frechet 1.10 [1.04, 1.17]; mmd 3.0 [2.5, 3.6]; many steps 1.50" in sw
    assert [text for _, text in page.all("b")] == ["1.10[1.04, 1.17]"] * 2, "mmd is told apart under both encoders only"
    loss = next(a["aria-label"] for a, _ in page.all("svg") if a["aria-label"].startswith("loss"))
    assert all(f"{o}, seed {s}" in loss for o in ("frechet", "mmd") for s in (0, 1)), "all curves in one drawing"
    links = [a["href"] for a, _ in page.all("a")]
    assert {f"./points/000{k}/report.html" for k in range(4)} <= set(links)
    assert [a["alt"] for a, _ in page.all("img")] == [
        "samples: fresh real",
        *(f"samples: {o}, seed 0" for o in ("frechet", "mmd")),
    ]
    said = [text for _, text in page.all("dd")]
    assert said[0] == "rdm sweep s.gin --out made" and "0, 1" in said and "Diverged: step 3" in page.source
    assert "train.steps = 400" in page.source and "mlp.width" not in page.source, "what the points share"


def test_an_axis_of_numbers_has_curves_and_other_axes_rows(tmp_path):
    points = []
    for size in (256, 32, 2048):
        points.append({"labels": {"a.size": size}, "bindings": [], "folder": f"points/{size}"})
        a_run(tmp_path / "points" / str(size), 1 + 1 / size)
    write_json(tmp_path / "sweep.json", {"file": "s", "axes": ["a.size"], "goals": {}, "points": points})
    page = Page(write_sweep_report(tmp_path))
    label = next(a["aria-label"] for a, _ in page.all("svg") if a["aria-label"].startswith("sw/pixels"))
    assert label.startswith("sw/pixels: over size: many steps 1.5 at 32") and "1.03 at 32, 1 at 2048" in label


def test_a_run_that_goes_on_is_reported_as_far_as_it_is(tmp_path, capsys):
    """With a log whose last line is cut off, as while it is written; without one there is nothing to report."""
    run = tmp_path / "run"
    run.mkdir()
    assert main(["report", str(run)]) == 2 and "log.jsonl" in capsys.readouterr().err
    rows = [{"step": k, "loss": 1 / k, "distance/pixels": 2 / k, "seconds": 3.0 * k} for k in (10, 20)]
    (run / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 3')
    (run / "config.gin").write_text("rdm.train.steps = 400\n")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "not finished; 20 steps in 60 s are logged" in page and "<svg" in page and "rdm.train.steps = 400" in page
    assert main(["report", str(run), "--metrics", "fd"]) == 2 and "is no sweep" in capsys.readouterr().err


def test_wide_pictures_are_reduced(tmp_path):
    save_grid(tmp_path / "wide.png", torch.rand(4, 3, 32, WIDEST // 2), columns=4)
    figure = pictured("wide", tmp_path / "wide.png")
    assert f'width="{WIDEST}"' in figure and "image/jpeg" in figure and "enlarged" not in figure


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_are_round_and_inside(low, span, log):
    low = abs(low) + 1e-6 if log else low
    scale = Scale(low, low + span, 0, 100, log)
    if span < 1e-9 * abs(low):
        return
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 7 and ticks == sorted(ticks)
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    places = [scale(tick) for tick in ticks]
    assert places == sorted(places) and 0 <= places[0] and places[-1] <= 100


def test_dots_beyond_the_axis_have_arrows_and_a_zero_has_a_place():
    """A far interval does not squeeze the dots; the ratio of copies and its interval's low end are 0."""
    fair = Mark("fair", Metric(1.2, 1.0, 1.4, 40, 0))
    far = dots("m", [Group("", [fair, Mark("far", Metric(1.1, -300.0, 300.0, 2, 0))])])
    assert far.count("<path") == 2 and dots("m", [Group("", [fair])]).count("<path") == 0
    for value in (0.0, 1e-15, 0.1):
        drawn = dots("m", [Group("", [fair, Mark("copies", Metric(value, 0.0, 0.14, 40, 0))])], log=True, one=True)
        places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
        assert len(places) == 2 and places[1] < places[0] and "nan" not in drawn
    assert "nan" not in dots("m", [Group("", [Mark("one", Metric(1.0, math.nan, math.nan, 1, 0))])])
    assert "nan" not in curves("m", "step", [Curve("", [(1, 2.0)])])


def test_what_was_logged_once_is_said_so():
    said = training({"": [{"step": 100, "loss": 0.5}]})
    assert "Logged once: loss 0.5." in said and "at every step" not in said
    said = training({"": [{"step": k, "lr": 1.0, **({"fresh": 2.0} if k == 9 else {})} for k in range(10)]})
    assert "Logged once: fresh 2." in said and "The same at every step: lr 1." in said


def test_the_packages_own_gin_files_are_named_in_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_command("rdm", "train", EXPERIMENTS / "digits" / "flow.gin") == "rdm train digits/flow"


def test_a_long_log_is_thinned_and_what_is_not_finite_is_left_out():
    log = [{"step": k, "loss": math.nan if k == 7 else 1 / k} for k in range(1, 50_001)]
    drawn = training({"": log})
    assert len(drawn) < 60_000 and "nan" not in drawn.lower()


def test_a_chart_for_itself_needs_no_page():
    """Colours as they are, for programs that know no variables; a row an encoder, held-out ones hollow."""
    metrics = {f"sw_r/{m}": Metric(v, v / 1.3, v * 1.3, 40, 0) for m, v in (("pixels", 0.8), ("dino", 2.0))}
    drawn = chart(Verdict(metrics, held_out=["dino"], members=["pixels", "dino"])).decode()
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert (
        "var(" not in drawn
        and "…" not in drawn
        and {"sw_r", "pixels", "dino"} <= set(texts)
        and "hollow" in str(texts[-1])
    )
    assert drawn.count('class="mark c0"') == drawn.count('class="mark c0 hollow"') == 1
