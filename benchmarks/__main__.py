"""Run every benchmark: `python -m benchmarks [--device cuda]`."""

import argparse
import os
import platform

import torch

from benchmarks import battery, objectives, population

parser = argparse.ArgumentParser(description="Times beside peers in one process, accuracy and peak memory.")
parser.add_argument("--device", default="cpu")
options = parser.parse_args()
torch.set_num_threads(1)
where = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores, one thread used"
print(f"torch {torch.__version__}, Python {platform.python_version()}, {options.device}: {where}")
objectives.run(options.device)
population.run(options.device)
battery.run(options.device)
