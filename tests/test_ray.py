"""Sweeps on a Ray cluster: two nodes on this machine, of which one is killed; wrong arguments."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rdm.__main__ import main
from rdm.app import sweep
from rdm.engines import _train
from rdm.reports.sweep import write_csv
from tests import processes
from tests.test_sweep import TINY, results

pytest.importorskip("ray", reason="Ray is of the extra `ray`, which is not installed")
ROOT = Path(__file__).parent.parent
POINTS = "rdm.sweep.grid = {'rdm.train.seed': [0, 1, 2, 3], 'losses.matching.population': [8, 16, 32]}\n"
LONG = "rdm.train.steps = 300\nrdm.train.checkpoint_every = 20\n"


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text(TINY)
    (tmp_path / "s.gin").write_text(f"include 'base.gin'\n{LONG}{POINTS}")
    return tmp_path


def cluster(at: Path) -> None:
    """A head and a second node with two processors each; files say what is there and what to do."""
    from ray.cluster_utils import Cluster

    own = tempfile.mkdtemp(prefix="rdm-ray-", dir="/tmp")  # paths of sockets are short
    os.environ["RAY_TMPDIR"] = own  # also for the address's file, which a node's `temp_dir` leaves in /tmp/ray
    small = {"num_cpus": 2, "object_store_memory": 78 * 2**20, "include_dashboard": False}
    quick = {f"health_check_{name}": n for name, n in (("period_ms", 500), ("failure_threshold", 6))}
    both = Cluster(initialize_head=True, head_node_args={**small, "_system_config": quick})
    second = both.add_node(**small)
    (at / "address").write_text(str(both.address))
    while not (at / "kill").exists():
        time.sleep(0.1)
    both.remove_node(second, allow_graceful=False)
    while not (at / "end").exists():
        time.sleep(0.1)
    both.shutdown()
    shutil.rmtree(own, ignore_errors=True)


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def begun_in(out: Path) -> list[Path]:
    """Points that have a checkpoint and no result."""
    return [p for p in out.glob("points/*") if list(p.glob("checkpoints/0*")) and not (p / "result.json").exists()]


def table(out: Path) -> list[dict[str, str]]:
    """A sweep's rows without how long they took."""
    rows = csv.DictReader(write_csv(out).read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def by_the_local_engine(at: Path) -> Path:
    """What it gives: its own command for every point, in forks, and itself for the last one."""
    *points, last = sweep.plan(Path("s.gin"), at / "local")
    for point in points:
        bound = [word for binding in point.bindings for word in ("--bind", binding)]
        process = processes.rdm("train", "s.gin", *bound, "--out", str(point.folder), "--resume", cwd=at)
        assert process.wait() == 0, process.communicate()
    process = processes.rdm("sweep", "s.gin", "--out", "local", cwd=at)
    assert process.wait() == 0 and (last.folder / "result.json").exists(), process.communicate()
    return at / "local"


@pytest.mark.slow
def test_a_sweep_finishes_though_a_node_is_killed_with_the_table_of_the_local_engine(at):
    """Twelve points on two nodes, no point and no step twice; then one whose folder no node sees, interrupted."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0", "PYTHONPATH": str(ROOT)}
    nodes = processes.Command(cluster, at, cwd=at, **quiet)
    try:
        local = table(by_the_local_engine(at))
        processes.until((at / "address").exists, nodes)
        assert (at / "address").exists(), nodes.poll() is None or nodes.communicate()
        address = (at / "address").read_text()
        out, begun = at / "out", ["--engine", "ray", "--address", address]
        process = processes.rdm("sweep", "s.gin", "--out", "out", *begun, cwd=at)
        processes.until(lambda: len(results(out)) >= 4 and len(begun_in(out)) >= 3, process)  # so on both nodes
        before = results(out)
        (at / "kill").touch()
        printed, said = process.communicate(900)
        assert process.returncode == 0, printed + said
        assert 1 <= said.count("worker was lost") == said.count("taken up again") <= 2 and "FAILED" not in said
        after = results(out)
        assert 4 <= len(before) < 12 == len(after) and {name: after[name] for name in before} == before
        assert all(steps(folder) == list(range(10, 301, 10)) for folder in (out / "points").iterdir())
        assert table(out) == local
        a_folder_that_no_node_sees(at, begun)
        (at / "g.gin").write_text("include 's.gin'\nrdm.sweep.resources = {'GPU': 1, 'lathe': 2}\n")
        process = processes.rdm("sweep", "g.gin", *begun, cwd=at)
        said = process.communicate(300)[1].splitlines()
        assert process.returncode == 2 and len(said) == 1, said
        assert said[0].startswith("rdm: no machine of the Ray cluster has {'CPU': 1, 'GPU': 1, 'lathe': 2}")
    finally:
        for name in ("kill", "end"):
            (at / name).touch()
        nodes.wait()


OWN_FOLDER = """
mount -t tmpfs none apart
[ ! -d kept ] || cp -r kept/. apart
"$@"
status=$?
cp -rT apart kept
exit $status
"""


def a_folder_that_no_node_sees(at: Path, begun: list[str]) -> None:
    """The sweep has a file system of its own there; what was trained is fetched, also after Ctrl-C, and sent again."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return  # no right to a file system of one's own; nothing else is left out
    grid = "rdm.sweep.grid = {'rdm.train.seed': [7]}\n"
    (at / "one.gin").write_text(f"include 'base.gin'\n{LONG.replace('300', '900')}{grid}")
    (at / "apart").mkdir()
    words = [sys.executable, "-P", "-m", "rdm", "sweep", "one.gin", "--out", "apart", *begun]
    own = ["unshare", "--mount", "sh", "-c", OWN_FOLDER, "sh", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(own, cwd=at, env=environment)
    while not list(Path(tempfile.gettempdir()).glob("rdm-point-*/point/checkpoints/0*")):
        assert process.poll() is None
        time.sleep(0.1)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGINT)
    assert process.wait(120) == 130
    (point,) = (at / "kept" / "points").iterdir()
    assert "checkpoint in" in (point / "output.txt").read_text() and 0 < steps(point)[-1] < 900
    assert subprocess.run(own, cwd=at, env=environment).returncode == 0
    assert steps(point) == list(range(10, 901, 10)) and (point / "result.json").exists()


@pytest.mark.parametrize("words, binding, said", [
    (["--engine", "rai"], "", "unknown engine 'rai'; did you mean 'ray'?"),
    (["--address", "here:1"], "", "--address is not of --engine local; of ray it is"),
    (["--engine", "ray", "--address", "here"], "", "--address must be HOST:PORT of a Ray cluster; got 'here'"),
    (["--engine", "ray", "--address", "127.0.0.1:FREE"], "", "no Ray cluster answers at 127.0.0.1:"),
    ([], "rdm.sweep.resources = {'GPU': 1}", "rdm.sweep.resources is not of --engine local; of ray it is"),
    (["--engine", "ray"], "rdm.sweep.resources = {'GPU': 0}", "rdm.sweep.resources must be"),
    (["--engine", "ray", "--workers", "0"], "", "--workers must be"),
])  # fmt: skip
def test_wrong_arguments_are_one_line(at, capsys, words, binding, said):
    (at / "w.gin").write_text(f"include 's.gin'\nrdm.sweep.grid = {{'rdm.train.seed': [0]}}\n{binding}\n")
    words = [word.replace("FREE", str(processes.free_port())) for word in words]
    assert main(["sweep", "w.gin", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no report")]
    assert len(lines) == 1 and said in lines[0], lines
    assert not list(at.glob("runs/*/points/*"))


def test_a_port_of_another_program_is_no_cluster(at, capsys, monkeypatch):
    monkeypatch.setattr("rdm.engines.ray.ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert main(["sweep", "s.gin", "--engine", "ray", "--address", f"127.0.0.1:{silent.getsockname()[1]}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "no Ray cluster answers at 127.0.0.1:" in lines[0] and "timed out" in lines[0]


def test_without_ray_the_extra_is_named(at, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", "s.gin", "--engine", "ray"]) == 2
    assert '--engine ray needs ray; pip install "rdm-torch[ray]"' in capsys.readouterr().err


def test_what_is_packed_comes_back_without_locks_and_in_place_of_what_was_there(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, text in ((one, "new"), (other, "old")):
        (folder / "checkpoints" / text).mkdir(parents=True)
        for name in ("lock", ".lock", "checkpoints/.half", f"checkpoints/{text}/state", "result.json"):
            (folder / name).write_text(text)
    _train.unpack(_train.packed(one), other)
    found = {str(p.relative_to(other)): p.read_text() for p in other.rglob("*") if p.is_file()}
    assert found == {"lock": "old", ".lock": "old", "checkpoints/new/state": "new", "result.json": "new"}
