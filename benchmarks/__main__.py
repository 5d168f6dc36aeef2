"""Run every benchmark: `python -m benchmarks [--device cuda] [--only NAME]`."""

import argparse
import os
import platform

import torch

from benchmarks import battery, binding, evaluation, flows, memories, objectives, population, shards, steps

parser = argparse.ArgumentParser(description="Times beside peers in one process, accuracy and peak memory.")
parser.add_argument("--device", default="cpu")
parser.add_argument(
    "--only",
    help="one: mmd, energy, frechet, sliced, sinkhorn, references, memories (bound, queues, followed), binding, "
    "population (digits), battery, evaluation, flows, steps, shards",
)
parser.add_argument("--rows", type=int, default=50_000, help="of the reference of shards; 1280000 in full (50000)")
options = parser.parse_args()
torch.set_num_threads(1)
where = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores, one thread used"
print(f"torch {torch.__version__}, Python {platform.python_version()}, {options.device}: {where}")
objectives.run(options.device, options.only)
if options.only in (None, "memories", "bound", "queues", "followed"):
    memories.run(options.device, options.only)
if options.only == "binding" or options.only is None and options.device == "cpu":
    binding.run()
if options.only in (None, "population"):
    population.run(options.device)
if options.only in (None, "population", "digits"):
    population.digits(options.device)
if options.only in (None, "battery"):
    battery.run(options.device)
if options.only in (None, "evaluation"):
    evaluation.run(options.device)
if options.only in (None, "flows"):
    flows.run(options.device)
if options.only in (None, "steps"):
    steps.run(options.device)
if options.only in (None, "shards"):
    shards.run(rows=options.rows)
