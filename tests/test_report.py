"""Reports of runs that have not finished."""

import json

from rdm.__main__ import main


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
