"""Checkpoints while training goes on, those that stay, SIGUSR1, full disks, folders that move."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rdm import distributed
from rdm.app.process import terminated_as_interrupted
from rdm.errors import InputError
from rdm.files.checkpoint import complete_checkpoints, read_checkpoint, row_of
from rdm.losses.flow_matching import FlowMatching
from rdm.surviving import joining
from rdm.surviving.keeping import Keeping
from rdm.surviving.ranks import Seen, Word, lost
from rdm.surviving.saving import Saver
from tests import processes
from tests.test_train import CONFIG, leaves, run, untimed


def steps_in(folder: Path) -> list[int]:
    return [int(path.name) for path in complete_checkpoints(folder)]


def test_checkpoints_stay_by_number_steps_hours_and_best():
    """A checkpoint every 4 steps of a quarter of an hour each; the distance falls to step 40 and rises again."""
    rows = [{"step": k, "seconds": 900.0 * k, "distance": abs(k - 41)} for k in range(4, 101, 4)]
    assert Keeping(2).kept(rows) == {96, 100}
    assert Keeping(1, every=30).kept(rows) == {100, 32, 60, 92}
    assert Keeping(1, hours=6).kept(rows) == {100, 24, 48, 72, 96}
    assert Keeping(1, lowest="distance").kept(rows) == {100, 40}
    assert Keeping(1, highest="distance").kept(rows[:-1]) == {96}  # 55 off, and the first 37
    assert Keeping(1, lowest="other").kept(rows) == {100} and Keeping(3).kept(rows[:2]) == {4, 8}
    assert Keeping(1, lowest="other").unmeasured(rows[0]) == ["other"]
    assert Keeping(1, lowest="x").kept([{"step": 1, "x": float("nan")}, {"step": 2, "x": 5.0}, {"step": 3}]) == {3, 2}


@given(
    values=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    newest=st.integers(1, 3),
    every=st.none() | st.integers(1, 9),
    hours=st.none() | st.floats(0.1, 2),
)
def test_what_went_is_never_missed(values, newest, every, hours):
    """Taken away one at a time, as they are written, what stays is what stays of all at once."""
    keeping, seconds, held, rows = Keeping(newest, every, hours, "value", "value"), 0.0, {}, []
    for k, value in enumerate(values, 1):
        seconds += 600.0 * value + 60
        rows.append({"step": k, "seconds": seconds, "value": float(value)})
        held[k] = rows[-1]
        held = {step: held[step] for step in keeping.kept(held.values())}
    assert held.keys() == keeping.kept(rows)


def test_a_state_that_changes_while_it_is_written_is_the_one_that_was_given(tmp_path):
    state = {"w": torch.ones(2**23)}
    with Saver(tmp_path, Keeping(2)) as saver:
        saver.save(1, state, {"step": 1})
        assert complete_checkpoints(tmp_path) == []  # 32 MB are not written yet
        state["w"].zero_()
        saver.save(2, state, {"step": 2, "loss": 0.5})
        assert bool((read_checkpoint(tmp_path / "00000001")[1]["w"] == 1).all())
    assert steps_in(tmp_path) == [1, 2] and row_of(tmp_path / "00000002") == {"step": 2, "loss": 0.5}


def test_what_the_writer_fails_with_is_raised_by_the_next_call(tmp_path, capsys):
    (tmp_path / "checkpoints").write_text("a file")
    saver = Saver(tmp_path / "checkpoints", Keeping(1))
    saver.save(1, {}, {"step": 1})
    with pytest.raises(FileExistsError):
        saver.save(2, {}, {"step": 2})
    assert "checkpoint of step 1 could not be written: File exists; there is none before it" in capsys.readouterr().err


class At(FlowMatching):
    """Flow matching that does something at some steps."""

    acts: dict = {}

    def backward(self, model, step, scale=1.0):
        self.acts.get(step, lambda: None)()
        return super().backward(model, step, scale)


def acting(out, acts, **options):
    loss = At(batch=8)
    object.__setattr__(loss, "acts", acts)
    plain = {"log_every": 1, "checkpoint_every": 1, "steps": 8, "keep": 3, "samples_every": None}
    return run("flow", out, losses=[loss], **{**plain, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    out = tmp_path_factory.mktemp("whole")
    acting(out, {})
    return out


def assert_same_end(a: Path, b: Path) -> None:
    """Every tensor of the last state, and every row of the log but the time."""
    ends = [read_checkpoint(complete_checkpoints(out / "checkpoints")[-1]) for out in (a, b)]
    assert ends[0][0] == ends[1][0]
    for x, y in zip(leaves(ends[0][1]), leaves(ends[1][1]), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    assert untimed(a) == untimed(b)


@pytest.fixture
def limit():
    """Sets the largest size of a file that can be written, as a full disk does, when a checkpoint is there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_it(size=None, checkpoint=None):
        while checkpoint is not None and not checkpoint.exists():
            time.sleep(0.001)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))

    yield set_it
    set_it()


def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path, whole, limit, capsys):
    second = tmp_path / "checkpoints" / "00000002"
    acting(tmp_path, {2: lambda: limit(300, second), 4: limit}, samples_every=3)
    said = capsys.readouterr().err
    for what in ("checkpoint of step 3", f"the row of step 3 in {tmp_path}/log.jsonl", "samples of step 3"):
        assert f"{what} could not be written: File too large" in said, (what, said)
    assert f"the last good one is {tmp_path}/checkpoints/00000002" in said
    assert steps_in(tmp_path / "checkpoints") == [6, 7, 8]
    assert_same_end(tmp_path, whole)


def test_a_disk_that_stays_full_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path, whole, limit, capsys):
    with pytest.raises(OSError, match="File too large"):
        acting(tmp_path, {2: lambda: limit(300, tmp_path / "checkpoints" / "00000002")})
    limit()
    assert "checkpoint of step 5 could not" in (said := capsys.readouterr().err) and "of step 6 could not" not in said
    assert steps_in(tmp_path / "checkpoints") == [1, 2]
    acting(tmp_path, {}, resume=True)
    assert_same_end(tmp_path, whole)
    last = tmp_path / "last" / "checkpoints" / "00000007"
    with pytest.raises(OSError, match="File too large"):  # the last one must be there
        acting(last.parent.parent, {7: lambda: limit(300, last)})
    limit()
    assert steps_in(last.parent) == [5, 6, 7]


def test_sigusr1_saves_and_goes_on(tmp_path, whole, capsys):
    acting(tmp_path, {2: lambda: os.kill(os.getpid(), signal.SIGUSR1)}, checkpoint_every=8)
    assert f"SIGUSR1 at step 3 of 8: the newest checkpoint is {tmp_path}/checkpoints/00000003; going on" in (
        capsys.readouterr().err
    )
    assert steps_in(tmp_path / "checkpoints") == [3, 8]
    shutil.rmtree(tmp_path / "checkpoints" / "00000008")
    acting(tmp_path, {}, resume=True)
    assert_same_end(tmp_path, whole)
    with terminated_as_interrupted():  # as before and after training
        os.kill(os.getpid(), signal.SIGUSR1)


def test_the_best_checkpoint_stays_and_a_number_that_is_not_logged_is_said(tmp_path, capsys):
    acting(tmp_path, {}, keep=1, keep_lowest="loss", keep_highest="distance/none")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["loss"])["step"]
    assert steps_in(tmp_path / "checkpoints") == sorted({best, 8})
    assert "step 1 logged no 'distance/none', by which the best checkpoint would be told" in capsys.readouterr().err


def test_a_copied_run_folder_resumes_and_holds_no_absolute_path(tmp_path, whole):
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert files and not any(str(whole.parent).encode() in path.read_bytes() for path in files)
    shutil.copytree(whole, tmp_path / "there")
    for step in (7, 8):
        shutil.rmtree(tmp_path / "there" / "checkpoints" / f"{step:08d}")
    acting(tmp_path / "there", {}, resume=True)
    assert_same_end(tmp_path / "there", whole)


@pytest.mark.slow
def test_a_full_file_system_ends_the_command_with_a_sentence_and_it_goes_on_when_there_is_room(tmp_path):
    (tmp_path / "x.gin").write_text(CONFIG + "rdm.train.checkpoint_every = 1\nrdm.train.keep_every = 1\n")
    train = f"{sys.executable} -m rdm train x.gin --out full/run --bind 'rdm.train.steps = 40'"
    script = (
        "mkdir full && mount -t tmpfs -o size=300k none full || exit 9\n"
        f"{train}; echo status $? >&2; mount -o remount,size=9m full; {train} --resume; echo status $? >&2; ls full/run"
    )
    shell = ["unshare", "-rm", "sh", "-c", script]
    ended = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"})
    if ended.returncode == 9 or "unshare" in ended.stderr:
        pytest.skip("no file system can be mounted here")
    assert "could not be written: No space left on device; the last good one is full/run/checkpoints/" in ended.stderr
    first, second = (part.strip().splitlines() for part in ended.stderr.split("status ")[:2])
    assert first[-1].startswith("rdm: OSError: No space left on device at full/run/checkpoints/"), first
    assert "files written before are whole" in first[-1] and second[0] == "1", (first, second)
    assert ended.stderr.strip().endswith("status 0") and "result.json" in ended.stdout, ended.stderr


def test_the_numbers_that_say_what_stays_are_checked(tmp_path):
    for name, value in (("keep_every", 0), ("keep_hours", -1.0), ("keep_lowest", 3)):
        with pytest.raises(InputError, match=f"{name} must be"):
            run("flow", tmp_path, **{name: value})


def test_the_rank_that_is_lost_is_told_by_words_alone():
    """Rank 1 of three stays behind in the fourth collective, or says nothing more; all by the reader's clock."""

    def seen(*spoken):
        return [Seen(Word(beat=1, **word), spoke, moved) for spoke, moved, word in spoken]

    waiting, late = {"issued": 4, "limit": 10.0}, {"issued": 3, "limit": 10.0}
    assert lost(seen((99, 80, waiting), (99, 80, late), (99, 80, waiting)), 100) == (
        "rank 1 hangs: the others have waited 10 s for it"
    )
    for fine in (
        seen((99, 95, waiting), (99, 80, late), (99, 80, waiting)),  # a rank that still moved 5 s ago
        seen((99, 80, waiting), (99, 95, late), (99, 80, waiting)),  # the late one did
        seen((99, 80, waiting), (99, 80, waiting), (99, 80, waiting)),  # all do something long, or wait in one
        seen((99, 80, waiting), (99, 80, {**late, "limit": None}), (99, 80, waiting)),  # outside of the loop
        seen((99, 80, waiting), (99, 80, {**late, "doing": "drawing"}), (99, 80, waiting)),
        seen((99, 80, waiting), (0, 0, {**late, "ended": True}), (99, 80, waiting)),
    ):
        assert lost(fine, 100) == ""
    drawing = seen((199, 80, waiting), (199, 80, {**late, "doing": "drawing"}), (199, 80, waiting))
    assert lost(drawing, 200) == "rank 1 hangs (drawing): the others have waited 100 s for it"
    silent = "rank 2 has not answered for {} s: it was killed or stopped"
    assert lost(seen((99, 99, waiting), (99, 99, waiting), (89, 89, waiting)), 100) == silent.format(10)
    assert lost(seen((99, 99, {}), (99, 99, {}), (54, 54, {})), 100) == silent.format(45)


@pytest.mark.slow
def test_a_rank_that_dies_hangs_stops_or_fails_ends_the_others_with_its_number(tmp_path):
    port = 20_000 + (os.getpid() + 101) % 20_000
    accidents = ["1:kill:3", "0:kill:3", "2:sleep:3", "1:stop:3", "1:fail:3"]
    shown = subprocess.run(
        [sys.executable, "-m", "tests.ranked", str(tmp_path), str(port), *accidents],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(shown.stdout.splitlines()[-1])
    *killed, resumed = found[0]
    assert [status for status, _, _ in killed] == [1, -signal.SIGKILL, 1] and all(rank[0] == 0 for rank in resumed)
    said = "rank 1 ", "rank 0", "rank 2 hangs", "rank 1 has not answered for 3 s", ""
    for k, (ranks, accident, words) in enumerate(zip(found, accidents, said, strict=True)):
        ranks = ranks[:3]
        for number, (status, seconds, line) in enumerate(ranks):
            if number != int(accident[0]):
                assert status == 1 and seconds < 60, (accident, ranks)
                assert line.startswith(f"rdm: RankLost: {words or 'rank 1: no memory left'}"), (accident, ranks)
        assert k < 2 or complete_checkpoints(tmp_path / str(k) / "checkpoints")[-1].name == "00000002"
    assert found[4][1][0] == 1 and found[4][1][2] == "rdm: RuntimeError: no memory left"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2], ids=["alone", "sharded over two"])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path, ranks):
    """Signals, full disks and damaged checkpoints among the kills; RDM_KILLS says how many there are."""
    kills = int(os.environ.get("RDM_KILLS", "5"))
    shown = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(tmp_path), str(kills), str(ranks), "0"],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = json.loads(shown.stdout.splitlines()[-1])
    assert found["kills"] >= kills and found["other ends"] == 0, (found, shown.stderr)


@pytest.mark.slow
def test_a_rank_whose_others_do_not_come_answers_a_signal_and_does_not_wait_for_ever(tmp_path):
    environment, other = (processes.rank_environment(0, 2, processes.free_port()) for _ in range(2))
    (tmp_path / "c.gin").write_text(CONFIG)
    process = processes.rdm("train", "c.gin", cwd=tmp_path, **environment)
    short = processes.Command(joined_within, 0.5, cwd=tmp_path, **other)
    assert short.wait() == 1
    assert "WORLD_SIZE is 2, and 1 ranks have come in 0 s; start all of them" in short.communicate()[1]
    began = time.monotonic()
    processes.until(lambda: time.monotonic() > began + 8, process)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) != 0 and "rdm:" in process.communicate()[1]


@pytest.mark.slow
def test_ranks_meet_again_in_the_same_processes(tmp_path):
    port = processes.free_port()
    both = [processes.Command(joined_thrice, cwd=tmp_path, **processes.rank_environment(k, 2, port)) for k in range(2)]
    assert [each.wait(60) for each in both] == [0, 0], [each.communicate() for each in both]


def joined_thrice() -> int:
    """Join and part three times, each time with a word from the other rank."""
    for turn in range(3):
        with joining.started():
            assert distributed.words(f"{turn} {distributed.rank()}") == [f"{turn} 0", f"{turn} 1"]
    return 0


def joined_within(seconds: float) -> int:
    """Join ranks that do not come, in a process of its own."""
    joining.JOINING = seconds
    try:
        with joining.started():
            return 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
