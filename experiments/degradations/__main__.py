"""python -m experiments.degradations DATA --out FOLDER: run the study, then print its tables."""

import argparse
from pathlib import Path

from experiments.degradations.study import Sizes, run
from experiments.degradations.tables import tables
from rdm.__main__ import setting
from rdm.app.process import keep_freed_memory

parser = argparse.ArgumentParser(prog="python -m experiments.degradations", description=__doc__)
parser.add_argument("data", type=Path, help="labelled pictures, ten classes or more")
parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
parser.add_argument("--battery", default="mobile")
parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="argument of the battery")
parser.add_argument("--sizes", type=int, nargs=3, default=(800, 400, 400), metavar="N", help="reference, fresh, judged")
parser.add_argument("--metrics", metavar="A,B,C", help="default: all that can be measured")
parser.add_argument("--encoder", metavar="NAME", help="whose metrics are all shown (default: the first's)")
parser.add_argument("--workers", type=int, default=0)
keep_freed_memory()
options = parser.parse_args()
run(
    options.data,
    options.out,
    Sizes(*options.sizes),
    battery=options.battery,
    arguments=dict(map(setting, options.set)),
    names=options.metrics and options.metrics.split(","),
    workers=options.workers,
)
print(tables(options.out, options.encoder))
