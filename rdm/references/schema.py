"""What a reference file and a file of moments must hold (see `rdm.files.schema`)."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdm.errors import CorruptFileError, InputError
from rdm.files.schema import (
    Check,
    Law,
    anything,
    ascending,
    covariance,
    exactly,
    expect,
    listed,
    mapped,
    maybe,
    number,
    record,
    sha256,
    tensor,
    text,
)
from rdm.matching.real import Gaussian
from rdm.references.shards import DTYPES

KIND = "rdm reference 1"
LARGEST = 2**28  # numbers of one item
AGAIN = "measure the reference again"

_DESCRIPTION = {
    "kind": exactly(KIND),
    "data": text(),
    "battery": record({"name": maybe(text()), "arguments": mapped(anything)}),
    "form": record(
        {
            "size": maybe(number(int, low=1)),
            "channels": maybe(number(int, low=1, high=3)),
            "shape": listed(number(int, low=1)),
            "kind": text(),
        },
        {"rate": number(int, low=1)},
    ),
    "n": number(int, low=2),
    "n_fresh": number(int, low=0),
    "skipped": listed(text()),
    "depths": listed(text()),
    "sample": number(int, low=4),
    "seed": number(int),
    "split": number(low=0, high=1),
}
_ROWS = record({"dtype": text(*DTYPES), "shards": listed(sha256)})
_EXACT = covariance(1e-12)  # sums are exact: what is left is float64's rounding
_ROUNDED = covariance(1e-6)  # of others, perhaps in float32
WIDE = 1e100  # whose square is finite


def _fit(mean: str, sigma: str, d: str, law: Law) -> dict[str, Check]:
    """Mean and covariance under these names."""
    wide = tensor("float64", d, low=-WIDE, high=WIDE)
    return {mean: wide, sigma: tensor("float64", f"{d} {d}", low=-WIDE, high=WIDE, law=law)}


def _described_member(n: int, given: bool) -> Check:
    """What is said of a member; features that were `given` have no settings."""
    floor = record({"value": number(finite=False), "n": number(int, low=1)})
    settings = exactly({}) if given else mapped(anything)
    known = {"settings": settings, "fingerprint": text(), "dtype": text("float64", "float32", "bfloat16", "float16")}
    held = {"n": exactly(n), "bandwidth": maybe(number(low=0)), "floors": mapped(floor)}
    return record({**known, **held}, {"dimension": number(int, low=1)})


def check(tensors: Mapping[str, Tensor], description: dict[str, Any], path: Path) -> None:
    """Every entry of a reference file by its description; the sizes of all members agree with the counts."""
    expect(description, record(_DESCRIPTION, {"members": anything, "held_out": anything, "rows": _ROWS}), path, AGAIN)
    members = mapped(_described_member(description["n"], description["battery"]["name"] is None))
    expect(description.get("members"), members, f"{path}, members", AGAIN)
    if not description["members"]:
        raise CorruptFileError(f"{path} has no members; {AGAIN}")
    expect(description.get("held_out"), listed(text(*description["members"])), f"{path}, held_out", AGAIN)
    _check_form(description["form"], path)
    sides = {"": ("rows", "m"), "fresh_": ("fresh", "f")}
    sizes = {"m": min(description["n"], description["sample"]), "f": min(description["n_fresh"], description["sample"])}
    known: dict[str, Check] = {}
    for prefix, (_, letter) in sides.items():
        if sizes[letter]:
            known[f"{prefix}keys"] = tensor("int64", letter, low=0, law=ascending)
            known[f"{prefix}labels"] = tensor("int64", letter, low=-1)
    optional: dict[str, Check] = {key: anything for key in tensors if "/module/" in key}
    for k, name in enumerate(description["members"]):
        fit = _fit(f"{name}/mean", f"{name}/covariance", f"d{k}", _EXACT)
        for label in classes_of(name, tensors):
            own = f"{name}/class/{label}"
            fit |= _fit(f"{own}/mean", f"{own}/covariance", f"d{k}", _EXACT)
            fit[f"{own}/n"] = tensor("int64", "", low=2, high=description["n"])
        rows = {
            f"{name}/{side}": tensor("float32", f"{letter} d{k}") for side, letter in sides.values() if sizes[letter]
        }
        known |= {**fit, **rows}
        optional[f"{name}/landmarks"] = tensor("float64", f"l{k} d{k}")
    expect(tensors, record(known, optional), path, AGAIN, **sizes)
    for name, member in description["members"].items():
        rows, fit = tensors[f"{name}/rows"], (tensors[f"{name}/mean"], tensors[f"{name}/covariance"])
        _check_bandwidth(member["bandwidth"], rows, f"{path}: the bandwidth of {name!r}")
        _check_agreement(rows, *fit, description["n"], f"{path}: mean and covariance of {name!r}")


def _check_form(form: dict[str, Any], path: Path) -> None:
    shape, size, channels = form["shape"], form["size"], form["channels"]
    fits = math.prod(shape) <= LARGEST and size in (None, shape[-1] if shape else None)
    if not fits or (len(shape) == 3 and channels not in (None, shape[0])):
        raise CorruptFileError(
            f"{path}: items of shape {shape} do not come of size {size} and channels {channels}; measure it again"
        )


def _check_bandwidth(bandwidth: float | None, rows: Tensor, who: str) -> None:
    """A median distance lies in the middle of the distances between some of the rows, which are in random order."""
    if bandwidth is None:
        return
    some = rows[:256].double()
    distances = torch.nn.functional.pdist(some - some.mean(0))
    below = float((distances < bandwidth * (1 - 1e-3)).double().mean())
    above = float((distances > bandwidth * (1 + 1e-3)).double().mean())
    if not (len(some) > 1 and below <= 0.75 and above <= 0.75):
        raise CorruptFileError(
            f"{who} must be the median distance between its rows; got {bandwidth:.6g}, above {below:.0%} and below "
            f"{above:.0%} of them; measure the reference again"
        )


def _check_agreement(rows: Tensor, mean: Tensor, covariance: Tensor, n: int, who: str) -> None:
    """The sample's mean is the reference's but for ten standard errors; of a whole sample, the variances too."""
    variance, middle = torch.var_mean(rows.double(), 0)
    gap, spread = float((middle - mean).square().sum()), float(covariance.diagonal().sum())
    rounding = 1e-5 * (float(mean.square().sum()) + spread)
    fits = gap <= 100 * spread * (1 / len(rows) - 1 / n) + rounding
    if len(rows) == n:
        fits &= bool(((variance - covariance.diagonal()).abs() <= rounding).all())
    if not fits:
        raise CorruptFileError(f"{who} are not those of its rows; the file is damaged or forged: {AGAIN}")


def classes_of(name: str, tensors: Iterable[str]) -> list[int]:
    """Classes of which a file holds moments under a member."""
    found = (re.fullmatch(rf"{re.escape(name)}/class/(\d{{1,18}})/(?:mean|covariance|n)", key) for key in tensors)
    return sorted({int(match[1]) for match in found if match})


def read_moments(path: Path) -> dict[str, Gaussian]:
    """Moments of an .npz by encoder: mu "d" and sigma "d d" of one that is not named, ""; or NAME.mu and NAME.cov.

    The first form is FD-loss', ADM's, EDM's and clean-fid's, the second fadtk's; other arrays are not read.

    Raises:
        CorruptFileError: truncated, altered, pickled, or of other arrays.
    """
    found = {}
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            named = [key.removesuffix(".mu") for key in archive.files if key.endswith(".mu")]
            places = {name: (f"{name}.mu", f"{name}.cov") for name in named} or {"": ("mu", "sigma")}
            for name, keys in places.items():
                found[name] = _moments({key: archive[key] for key in keys}, *keys, path)
    except CorruptFileError:
        raise
    except Exception as error:  # numpy and zipfile have their own, and advise to unpickle what nobody should
        kind = "cut off, altered or pickled" if not isinstance(error, KeyError) else "without one of them"
        raise CorruptFileError(f"{path} is no .npz of the arrays mu and sigma; it is {kind}") from error
    return found


def _moments(arrays: Mapping[str, np.ndarray], mean: str, sigma: str, path: Path) -> Gaussian:
    held = {}
    for name, array in arrays.items():
        if array.dtype not in (np.float64, np.float32):
            raise CorruptFileError(f"{path}: {name} must be float64 or float32; got {array.dtype}")
        held[name] = torch.from_numpy(array.astype(np.float64))
    expect(held, record(_fit(mean, sigma, "d", _ROUNDED)), path, "compute the moments again")
    if len(held[mean]) == 0:
        raise CorruptFileError(f"{path}: {mean} and {sigma} are empty; compute the moments again")
    return Gaussian(held[mean], held[sigma], 0)


def written_member(path: Path, members: Iterable[str], member: str | None, held_out: Sequence[str] = ()) -> str | None:
    """The member whose moments an .npz at `path` gets; None for a .safetensors file, which holds all.

    By default the only one that is not held out, as of the battery `fid`.

    Raises:
        InputError: another suffix, a member that is not there, or none named where there are several.
    """
    members = list(members)
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(f"expected --out FILE.safetensors, or FILE.npz for mu and sigma; got {path.name!r}")
    if member is not None and member not in members:
        raise InputError(f"the reference has no member {member!r}; known: {', '.join(members)}")
    if path.suffix == ".safetensors":
        if member is not None:
            raise InputError(f"--member says whose moments an .npz gets; {path.name} holds all; leave it out")
        return None
    trained_on = [name for name in members if name not in held_out] or members
    if member is None and len(trained_on) > 1:
        raise InputError(f"an .npz holds one encoder's moments; give --member, one of {', '.join(members)}")
    return member or trained_on[0]
