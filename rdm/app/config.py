"""Configuration by gin: the only module that imports it.

A gin file is code: it can import modules and call what they register. `restricted` refuses imports, includes from
outside the file's folder, and with them every name that is not in the registries; what is built then may fetch, run
and unpickle nothing (`rdm.trust`).
"""

import contextlib
import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gin
import gin.config
import gin.config_parser
import torch

from rdm.app import bindings
from rdm.app.bindings import Binding, Reference, Text
from rdm.app.explain import in_one_line, missing, placed
from rdm.errors import CorruptFileError, InputError, MismatchError, NonFiniteError, RestrictedError, UnknownNameError
from rdm.files.checkpoint import is_run
from rdm.judging.evaluation import Evaluation, Judge
from rdm.matching.representation import assemble
from rdm.numbers import ParameterError, Seed, check, check_given
from rdm.registry import registries
from rdm.scaling.modules import Compile
from rdm.training.augmentation import Jitter
from rdm.training.loop import train
from rdm.training.run import check_rates
from rdm.training.schedule import constant, cosine
from rdm.trust import confined

CORE: dict[str, Callable[..., Any]] = {
    "augmentations.jitter": Jitter,
    "schedules.constant": constant,
    "schedules.cosine": cosine,
    "optimizers.adamw": torch.optim.AdamW,
    "optimizers.adam": torch.optim.Adam,
    "optimizers.sgd": torch.optim.SGD,
    "rdm.battery": assemble,
    "rdm.compile": Compile,
    "rdm.evaluation": Evaluation,
}
BY_COMMAND = ("out", "resume", "cache", "prepared")  # arguments of `train` that the command line gives
UNRESTRICTED = "leave --restricted out if you trust the file"
MACRO = "gin.macro"
# whose type says more than the place would
OF_THEIR_OWN = (RestrictedError, UnknownNameError, MismatchError, CorruptFileError, NonFiniteError)
_written: list[Binding] = []  # what `load` read, in order
_confinement: tuple[str, str] | None = None  # of what `plan` builds: who asks for it, and how to allow it


def load(path: Path, binds: Iterable[str] = (), *, restricted: bool = False, remedy: str = UNRESTRICTED) -> None:
    """Read a gin file and bindings on top of it; every name in them must be known.

    `remedy` says how to allow what restricted mode refuses.

    Raises:
        InputError: no such file or bad syntax.
        RestrictedError: in restricted mode an import or an include from elsewhere.
        UnknownNameError: a configurable or parameter that does not exist, with the nearest one that does.
    """
    global _confinement, _written
    _register_all()
    root = Path(path).resolve().parent
    parts = [
        bindings.read(Path(path), bindings.within(root) if restricted else lambda *_: None),
        *map(bindings.given, binds),
    ]
    gin.clear_config()
    _written = []
    _confinement = (f"what {path} names", remedy) if restricted else None
    for number, part in enumerate(parts):
        if restricted:
            _refuse_imports(part, remedy)
        with _explained(part):
            _import(part)
            gin.parse_config(part.text)
            found = list(_bindings(part, part.text if number else None))
        if number and not found and not part.text.lstrip().startswith(("import ", "from ")):
            raise InputError(f"{part.place(1)}: expected 'NAME = VALUE'; got no binding")
        _written += found


def load_run(folder: Path, *, trusted: bool) -> None:
    """Read the configuration of a run folder: restricted, unless the user vouches for whoever made the folder.

    Raises:
        InputError: no run there, which has a configuration and a checkpoint.
        RestrictedError: it imports something.
    """
    if not is_run(folder):
        raise InputError(f"expected a run at {folder} (config.gin and a checkpoint); there is none")
    load(folder / "config.gin", restricted=not trusted, remedy="give --trust-config if you trust who made that folder")


def plan(*, alone: bool = False) -> dict[str, Any]:
    """Build the arguments of `train` that the configuration binds, and `evaluation` (None without one).

    `alone`, as of a run that no sweep asked for, errors say where a grid is bound, which may be what is missing.

    Raises:
        InputError: a required argument is not bound, or one cannot be used.
        RestrictedError: in restricted mode, something that would be fetched, run or unpickled.
    """
    with _confined():
        try:
            return _built()
        except InputError as error:
            if not alone or value("rdm.sweep.grid") is None:
                raise
            raise InputError(f"{error}; the file holds a grid, whose points `rdm sweep` trains") from error


def _confined() -> contextlib.AbstractContextManager[None]:
    return confined(*_confinement) if _confinement else contextlib.nullcontext()


def aside(name: str, instead: Any = None) -> Callable[[], Any]:
    """Bind something else to a name; returns what builds what was bound to it, as `plan` would."""
    found = value(name)
    with gin.unlock_config():
        gin.bind_parameter(name, instead)

    def build() -> Any:
        with _confined():
            return copy.deepcopy(found)  # which is how gin builds what a reference names

    return build


def check_argument(name: str, given: Any) -> None:
    """Refuse what `train` does not take under this name, as `plan` does, of what was put aside.

    Raises:
        InputError: so it is, with the line that bound it.
    """
    try:
        _plan(**{name: given})
    except ParameterError as error:
        raise placed(error, _written, _registered, "rdm.train") from error


def _built() -> dict[str, Any]:
    required = [p.name for p in _plan_signature().parameters.values() if p.default is p.empty]
    if missing := [name for name in required if not _bound(f"rdm.train.{name}")]:
        raise InputError(f"the configuration must bind rdm.train.{missing[0]}; it does not; add it to the file")
    _refuse_unread()
    try:
        arguments = gin.get_configurable("rdm.train")()
        if "optimizer" in arguments:  # called only while training: a trial checks and records its hyperparameters
            check_rates(arguments["optimizer"]([torch.zeros(1, requires_grad=True)]))
    except OF_THEIR_OWN:
        raise
    except (TypeError, ValueError) as error:
        raise placed(error, _written, _registered) from error
    return arguments


def grid() -> dict[str, Any]:
    """The axes that rdm.sweep.grid binds; references in it print as gin writes them.

    Raises:
        InputError: it binds none.
    """
    found = value("rdm.sweep.grid")
    if not isinstance(found, dict) or not found:
        example = "rdm.sweep.grid = {'rdm.train.seed': [0, 1, 2]}"
        raise InputError(f"a sweep's file must bind rdm.sweep.grid to axes; got {found!r}; add e.g. {example}")
    return found


def seed() -> int:
    """The seed that the configuration binds, 0 by default."""
    bound = value("rdm.train.seed")
    found = 0 if bound is None else bound
    check("rdm.train.seed", found, Seed)
    return found


def value(name: str) -> Any:
    """What is bound to a name, macros in their place; None for nothing."""
    while _bound(name):
        found = gin.query_parameter(name)
        if not isinstance(found, gin.config.ConfigurableReference) or found.config_key[1] != MACRO:
            return found
        name = f"{'/'.join(found.scopes)}/{MACRO}.value"
    return None


def operative() -> str:
    """The configuration as used so far, defaults included."""
    return gin.operative_config_str()


@functools.cache
def _plan_signature() -> inspect.Signature:
    parameters = [p for p in inspect.signature(train).parameters.values() if p.name not in BY_COMMAND]
    extra = inspect.Parameter("evaluation", inspect.Parameter.KEYWORD_ONLY, default=None)
    return inspect.Signature([*parameters, extra])


def _plan(**arguments: Any) -> dict[str, Any]:
    check_given(_plan, arguments, "rdm.train")
    return arguments


def _sweep(grid: dict[str, Any], resources: dict[str, float] | None = None) -> None:
    """Only the names of what a sweep's file binds; the sweep reads it."""


_plan.__signature__ = _plan_signature()  # type: ignore[attr-defined]  # gin validates parameter names against it
_plan.__annotations__ = {**train.__annotations__, "evaluation": Judge | None}
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


def _import(part: Text) -> None:
    """Import what a part imports, so that members of registries that it registers are known by their names there."""
    if "__gin__" in part.text:
        return
    for statement in gin.config_parser.ConfigParser(part.text, gin.config.ParserDelegate()):
        if isinstance(statement, gin.config_parser.ImportStatement):
            try:
                importlib.import_module(statement.module)
            except ModuleNotFoundError as error:
                place, remedy = part.place(statement.location.line_num), "say where it is: PYTHONPATH=FOLDER"
                raise InputError(f"{place}: no module {error.name!r} is found; install it, or {remedy}") from error
            _register_all()


def _refuse_imports(part: Text, remedy: str) -> None:
    with _explained(part):
        for statement in gin.config_parser.ConfigParser(part.text, gin.config.ParserDelegate()):
            if type(statement).__name__ in ("ImportStatement", "IncludeStatement"):
                number = statement.location.line_num
                line = part.text.splitlines()[number - 1].strip()
                raise RestrictedError(f"{part.place(number)}: restricted mode refuses {line!r}; {remedy}")


def _bindings(part: Text, command: str | None) -> Iterator[Binding]:
    """What a part binds; nothing where names are those of imported modules, which only gin's own reading knows."""
    if "__gin__" in part.text:
        return
    for statement in gin.config_parser.ConfigParser(part.text, gin.config.ParserDelegate()):
        if not isinstance(statement, gin.config_parser.BindingStatement):
            continue
        references = tuple(_references(statement.value))
        scope, name, parameter = "/".join(filter(None, (statement.scope, statement.selector))), MACRO, "value"
        if statement.arg_name:
            full = f"{statement.scope}/{statement.selector}.{statement.arg_name}".removeprefix("/")
            key = gin.config.ParsedBindingKey.parse(full)
            scope, name, parameter = key.scope, key.complete_selector, key.arg_name
        yield Binding(scope, name, parameter, references, part.place(statement.location.line_num), command)


def _references(value: Any) -> Iterator[Reference]:
    """Every reference within a value; a text that starts with @ is one where a grid holds it."""
    if isinstance(value, str) and value.startswith("@"):
        with contextlib.suppress(Exception):  # a text like any other
            value = gin.config_parser.ConfigParser(value, gin.config.ParserDelegate()).parse_value()
    if isinstance(value, gin.config.ConfigurableReference):
        yield Reference("/".join(value.scopes), value.config_key[1], value.evaluate)
    elif isinstance(value, dict | list | tuple):
        for each in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from _references(each)


def unread() -> list[Binding]:
    """Bindings of the command line that nothing reads, as the configuration is now."""
    effective = list({(b.scope, b.name, b.parameter): b for b in _written}.values())
    idle, _ = bindings.unread(effective, _roots({"rdm.train"}))
    return [binding for binding in idle if binding.command is not None]


def _roots(own: set[str]) -> set[str]:
    """Where reading starts: what the commands call, and names that a user's own modules registered."""
    return own | {b.name for b in _written if b.name not in _registered and b.name != MACRO}


def _refuse_unread() -> None:
    """Refuse --bind that nothing reads, and a file's bindings to which not even overridden lines lead."""
    idle, reached = bindings.unread(_written, _roots({"rdm.train", "rdm.sweep"}))
    for binding in (*unread(), *idle):
        if binding.name == MACRO:
            raise InputError(f"{binding.place}: nothing reads %{binding.scope}; refer to it so, or take it out")
        remedy = missing(binding, reached, _registered)
        raise InputError(f"{binding.place}: nothing reads {binding.full}; {remedy}, or take it out")


@contextlib.contextmanager
def _explained(part: Text) -> Iterator[None]:
    """One-line errors from gin's, with the place, and the nearest valid name where a name is unknown."""
    try:
        yield
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{part.place(1)}: nested too deeply") from error
    except Exception as error:
        raise in_one_line(error, part, _registered) from error


def _bound(name: str) -> bool:
    try:
        gin.query_parameter(name)
    except ValueError:
        return False
    return True
