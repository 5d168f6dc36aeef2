"""Configuration by gin: the only module that imports it.

A gin file is code: it can import modules and call what they register. `restricted` refuses imports, includes from
outside the file's folder, and with them every name that is not in the registries; what is built then may fetch, run
and unpickle nothing (`rdm.trust`).
"""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gin
import gin.config
import gin.config_parser
import torch

from rdm.augmentation import Jitter
from rdm.balance import SelfNormalized, Uniform
from rdm.checkpoint import is_run
from rdm.errors import InputError, RestrictedError, UnknownNameError
from rdm.evaluate import Evaluation
from rdm.losses import Classification, FlowMatching, Matching
from rdm.registry import nearest, registries
from rdm.representation import assemble
from rdm.schedule import constant, cosine
from rdm.train import train
from rdm.trust import confined

CORE: dict[str, Callable[..., Any]] = {
    "losses.matching": Matching,
    "losses.flow_matching": FlowMatching,
    "losses.classification": Classification,
    "augmentations.jitter": Jitter,
    "balances.uniform": Uniform,
    "balances.self_normalized": SelfNormalized,
    "schedules.constant": constant,
    "schedules.cosine": cosine,
    "optimizers.adamw": torch.optim.AdamW,
    "optimizers.adam": torch.optim.Adam,
    "optimizers.sgd": torch.optim.SGD,
    "rdm.battery": assemble,
    "rdm.evaluation": Evaluation,
}
BY_COMMAND = ("out", "resume", "cache")  # arguments of `train` that the command line gives


UNRESTRICTED = "leave --restricted out if you trust the file"
_confinement: tuple[str, str] | None = None  # of what `plan` builds: who asks for it, and how to allow it


def load(path: Path, bindings: Iterable[str] = (), *, restricted: bool = False, remedy: str = UNRESTRICTED) -> None:
    """Read a gin file and bindings on top of it; every name in them must be known.

    `remedy` says how to allow what restricted mode refuses.

    Raises:
        InputError: no such file or bad syntax.
        RestrictedError: in restricted mode an import or an include from elsewhere.
        UnknownNameError: a configurable or parameter that does not exist, with the nearest one that does.
    """
    global _confinement
    known = _register_all()
    text = _flatten(Path(path), Path(path).resolve().parent, restricted)
    gin.clear_config()
    _confinement = (f"what {path} names", remedy) if restricted else None
    for source, part in ((str(path), text), *((f"--bind {binding!r}", binding) for binding in bindings)):
        if restricted:
            _refuse_imports(part, source, remedy)
        try:
            gin.parse_config(part)
        except Exception as error:
            raise _explained(error, source, known) from error


def load_run(folder: Path, *, trusted: bool) -> None:
    """Read the configuration of a run folder: restricted, unless the user vouches for whoever made the folder.

    Raises:
        InputError: no run there, which has a configuration and a checkpoint.
        RestrictedError: it imports something.
    """
    if not is_run(folder):
        raise InputError(f"expected a run at {folder} (config.gin and a checkpoint); there is none")
    load(folder / "config.gin", restricted=not trusted, remedy="give --trust-config if you trust who made that folder")


def plan() -> dict[str, Any]:
    """Build the arguments of `rdm.train.train` that the configuration binds, and `evaluation` (None without one).

    Raises:
        InputError: a required argument is not bound, or one cannot be used.
        RestrictedError: in restricted mode, something that would be fetched, run or unpickled.
    """
    with confined(*_confinement) if _confinement else contextlib.nullcontext():
        return _built()


def _built() -> dict[str, Any]:
    required = [p.name for p in _plan_signature().parameters.values() if p.default is p.empty]
    if missing := [name for name in required if not _bound(f"rdm.train.{name}")]:
        raise InputError(f"the configuration must bind rdm.train.{missing[0]}; it does not; add it to the file")
    arguments = gin.get_configurable("rdm.train")()
    if "optimizer" in arguments:  # called only while training: a trial checks and records its hyperparameters
        try:
            arguments["optimizer"]([torch.zeros(1, requires_grad=True)])
        except (TypeError, ValueError) as error:
            raise InputError(f"rdm.train.optimizer: {own_text(error)}") from error
    return arguments


def grid() -> dict[str, Any]:
    """The axes that rdm.sweep.grid binds; references in it print as gin writes them.

    Raises:
        InputError: it binds none.
    """
    found = gin.query_parameter("rdm.sweep.grid") if _bound("rdm.sweep.grid") else None
    if not isinstance(found, dict) or not found:
        example = "rdm.sweep.grid = {'rdm.train.seed': [0, 1, 2]}"
        raise InputError(f"a sweep's file must bind rdm.sweep.grid to axes; got {found!r}; add e.g. {example}")
    return found


def seed() -> int:
    """The seed that the configuration binds, 0 by default."""
    return gin.query_parameter("rdm.train.seed") if _bound("rdm.train.seed") else 0


def operative() -> str:
    """The configuration as used so far, defaults included."""
    return gin.operative_config_str()


def own_text(error: BaseException) -> str:
    """An error's own text without the call chain that gin appends, on one line."""
    return " ".join(str(error).split("\n  In call to configurable")[0].split())


@functools.cache
def _plan_signature() -> inspect.Signature:
    parameters = [p for p in inspect.signature(train).parameters.values() if p.name not in BY_COMMAND]
    extra = inspect.Parameter("evaluation", inspect.Parameter.KEYWORD_ONLY, default=None)
    return inspect.Signature([*parameters, extra])


def _plan(**arguments: Any) -> dict[str, Any]:
    return arguments


def _sweep(grid: dict[str, Any]) -> None:
    """Only the name of what a sweep's file binds; `grid` reads it."""


_plan.__signature__ = _plan_signature()  # type: ignore[attr-defined]  # gin validates parameter names against it
_registered: dict[str, Callable[..., Any]] = {}


def _register_all() -> dict[str, Callable[..., Any]]:
    """Make every registry member and core part known to gin, once each; returns them by full name."""
    members = {
        f"{kind}.{name}": entry.build for kind, registry in registries.items() for name, entry in registry.items()
    }
    for full_name, build in {**CORE, **members, "rdm.train": _plan, "rdm.sweep": _sweep}.items():
        if full_name not in _registered:
            module, name = full_name.rsplit(".", 1)
            register = gin.external_configurable if build.__module__.startswith("torch.") else gin.register
            if register is gin.register:
                gin.register(name, module=module)(build)
            else:
                gin.external_configurable(build, name, module=module)
            _registered[full_name] = build
    return _registered


def _flatten(path: Path, root: Path, restricted: bool) -> str:
    """The file's text with included files in place of their include lines, paths relative to the including file."""
    if not path.is_file():
        raise InputError(f"expected a gin file at {path}; there is none")
    lines = []
    for line in path.read_text().splitlines():
        included = re.match(r"""\s*include\s+['"](.+)['"]\s*(#.*)?$""", line)
        if included is None:
            lines.append(line)
            continue
        inner = path.parent / included[1]
        if restricted and not inner.resolve().is_relative_to(root):
            raise RestrictedError(f"{path}: restricted mode refuses to include {inner} from outside {root}")
        lines.append(_flatten(inner, root, restricted))
    return "\n".join(lines) + "\n"


def _refuse_imports(text: str, source: str, remedy: str) -> None:
    try:
        for statement in gin.config_parser.ConfigParser(text, gin.config.ParserDelegate()):
            if type(statement).__name__ in ("ImportStatement", "IncludeStatement"):
                line = text.splitlines()[statement.location.line_num - 1].strip()
                raise RestrictedError(f"{source}: restricted mode refuses {line!r}; {remedy}")
    except SyntaxError as error:
        raise InputError(f"{source}: {own_text(error)}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise _explained(error, source, _registered) from error


def _explained(error: Exception, source: str, known: dict[str, Callable[..., Any]]) -> InputError:
    """A one-line error from gin's, with the nearest valid name where a name is unknown."""
    text = own_text(error)
    if match := re.search(r"No configurable matching (?:reference )?'@?([^'()]+)", text):
        return UnknownNameError(f"{source}: unknown name {match[1]!r}{_nearest_configurable(match[1], known)}")
    if match := re.search(r"(?:'|\")(\S+?)(?:'|\") doesn't have a parameter named (?:'|\")(\S+?)(?:'|\")", text):
        full = next((name for name in known if name == match[1] or name.endswith(f".{match[1]}")), None)
        accepted = inspect.signature(known[full]).parameters if full else ()
        return UnknownNameError(f"{source}: {match[1]} has no parameter {match[2]!r}{nearest(match[2], accepted)}")
    return InputError(f"{source}: {text}")


def _nearest_configurable(name: str, known: Iterable[str]) -> str:
    short = {full.rsplit(".", 1)[1]: full for full in known}
    hint = nearest(name, known)
    return hint if "did you mean" in hint else nearest(name.rsplit(".", 1)[-1], [*short])


def _bound(name: str) -> bool:
    try:
        gin.query_parameter(name)
    except ValueError:
        return False
    return True
