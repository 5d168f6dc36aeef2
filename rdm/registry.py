"""Registries: the one place where a member's name meets its constructor.

A member registers itself above its class or function::

    @objectives.register("sliced_wasserstein", examples=(dict(projections=16),))

and is found by every command, test and configuration. A registry loads the packages that may hold its members on the
first look-up (`pkgutil`), so that a new file is seen without an import list; then the modules of installed packages
that an entry point of the group `rdm.members` names, whatever they register. What a member is given is checked against
its annotations (`rdm.numbers`).
"""

import difflib
import importlib
import inspect
import pkgutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from rdm.errors import InputError, UnknownNameError, first_line
from rdm.numbers import validated

T = TypeVar("T", bound=Callable[..., Any])
K = TypeVar("K")
V = TypeVar("V")
M = TypeVar("M")
GROUP = "rdm.members"  # of entry points, each a module that registers what it holds
HOME = Path(__file__).resolve().parent.parent  # where rdm is installed, and its packages beside it
EXPERIMENTS = HOME / "experiments"  # its own gin files
OWN = "rdm", "objectives", "representations"
_LOADING = threading.RLock()  # one for all registries: members of one are imported while another loads
_installed = {"begun": False, "done": False}  # the import of installed packages' modules


class Entry(NamedTuple):
    """One member: what builds it, and what the tests and `rdm list` need to know."""

    name: str
    build: Callable[..., Any]
    examples: tuple[dict[str, Any], ...]  # small hyperparameters, used by the tests
    needs: str  # what must be installed or made first; empty if nothing
    notes: Mapping[str, str]  # what a list shows beside the summary, such as the dimension of features
    present: Callable[[], bool] | None  # whether its weights are on this machine; None where it has none of its own

    @property
    def summary(self) -> str:
        """First line of the member's docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest of `names`, or "; known: ..." when none is close."""
    names = sorted(names)
    if not names:
        return "; there are none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def by_name(what: str, given: Mapping[str, V], names: Iterable[str]) -> dict[str, V]:
    """What a mapping gives each member of a battery, in the members' order.

    Raises:
        InputError: it names no member, or not all of them.
    """
    names = list(names)
    for name in given:
        if name not in names:
            raise InputError(f"{what}: no member is called {name!r}{nearest(str(name), names)}")
    if missing := [name for name in names if name not in given]:
        raise InputError(f"{what}: expected one for each member; none is given for {missing[0]!r}")
    return {name: given[name] for name in names}


class Registry(Mapping[str, Entry], Generic[M]):
    """Members of one kind by name; reading it loads the packages where members live, and installed ones."""

    def __init__(self, kind: str, *packages: str):
        self.kind = kind
        self._packages = packages
        self._entries: dict[str, Entry] = {}
        self._discovered = self._loading = False

    def register(
        self,
        name: str,
        *,
        examples: tuple[dict[str, Any], ...] = ({},),
        needs: str = "",
        notes: Mapping[str, str] | None = None,
        present: Callable[[], bool] | None = None,
    ) -> Callable[[T], T]:
        """Register the decorated class or function under `name`; a taken name is an error."""

        def add(given: T) -> T:
            if str(getattr(given, "__module__", "")).partition(".")[0] not in OWN:
                self._load_own()  # whose names are taken before yours
            build = validated(given, name)
            taken = self._entries.get(name)
            if taken is not None:
                raise InputError(
                    f"{self.kind} {name!r} is taken by {_origin(taken.build)}; choose another name for {_origin(build)}"
                )
            self._entries[name] = Entry(name, build, examples, needs, notes or {}, present)
            return build

        return add

    def build(self, name: str, /, **hyperparameters: Any) -> M:
        """Build the member called `name`; unknown names and hyperparameters are refused with the nearest valid one."""
        build = self[name].build
        accepted = inspect.signature(build).parameters
        for given in hyperparameters:
            if given not in accepted:
                raise InputError(f"{self.kind} {name!r} has no hyperparameter {given!r}{nearest(given, accepted)}")
        named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        for each in accepted.values():
            if each.default is each.empty and each.kind in named and each.name not in hyperparameters:
                raise InputError(f"{self.kind} {name!r} needs {each.name}; `rdm show {name}` says what it is")
        return build(**hyperparameters)

    def take(self, given: Any, kind: type[K], /, **hyperparameters: Any) -> K:
        """What is given where a member is wanted: an object of that kind, or the name of one with hyperparameters."""
        if isinstance(given, str):
            built: Any = self.build(given, **hyperparameters)
            return built
        if isinstance(given, kind) and hyperparameters:
            raise InputError(
                f"hyperparameters {', '.join(hyperparameters)} go with a name; got {given}, which has its own"
            )
        if isinstance(given, kind):
            return given
        found = f"the class {given.__name__} (call it)" if isinstance(given, type) else type(given).__name__
        wanted = f"a{'n' if kind.__name__[0] in 'AEIO' else ''} {kind.__name__}"
        raise InputError(f"expected {wanted} or the registered name of one; got {found}")

    @contextmanager
    def temporarily(self) -> Iterator[None]:
        """Undo every registration made inside the block (for tests)."""
        before = dict(self._loaded())
        try:
            yield
        finally:
            self._entries = before

    def _loaded(self) -> dict[str, Entry]:
        self._load_own()
        if not self._loading:
            _load_installed()
        return self._entries

    def _load_own(self) -> None:
        if self._discovered:
            return
        with _LOADING:  # other threads wait; this one may read the registry while its members are imported
            if self._discovered or self._loading:
                return
            self._loading = True
            try:
                for package in OWN[1:]:  # members of either import from the other
                    import_at_home(package)
                for package in self._packages:
                    _import_members(package)
                self._discovered = True
            finally:
                self._loading = False

    def __getitem__(self, name: str) -> Entry:
        entries = self._loaded()
        if name not in entries:
            raise UnknownNameError(f"unknown {self.kind} {name!r}{nearest(name, entries)}")
        return entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._loaded()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._loaded()))

    def __len__(self) -> int:
        return len(self._loaded())


def _import_members(package: str) -> None:
    module = importlib.import_module(package)
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not found.name.startswith("_"):
            importlib.import_module(f"{package}.{found.name}")


def import_at_home(package: str) -> None:
    """Import a package from where rdm is installed, whichever of its name comes first on the path.

    Raises:
        InputError: another one is imported already.
    """
    home = HOME / package / "__init__.py"
    if package not in sys.modules:
        first = PathFinder.find_spec(package)
        spec = spec_from_file_location(package, home, submodule_search_locations=[str(home.parent)])
        assert spec is not None and spec.loader is not None
        module = sys.modules[package] = module_from_spec(spec)
        spec.loader.exec_module(module)
        if first is not None and first.origin is not None and Path(first.origin).resolve() != home:
            warnings.warn(
                f"import {package} gives rdm's package of that name from here on, not {Path(first.origin).parent}; "
                "rename that folder if something imports it",
                stacklevel=2,
            )
    found = Path(getattr(sys.modules[package], "__file__", None) or "a folder without __init__.py").resolve()
    if found != home:
        raise InputError(
            f"expected rdm's package {package!r} at {home.parent}; {found.parent} is imported under that name; "
            "rename that folder, or take it off the path"
        )


def installed() -> list[EntryPoint]:
    """Entry points of installed packages whose modules register members, in the order of their names."""
    return sorted(set(entry_points(group=GROUP)), key=lambda entry: (entry.name, entry.value))


def _load_installed() -> None:
    """Import what installed packages register, once.

    Raises:
        InputError: one of them cannot be imported; the text names its package.
    """
    if _installed["done"]:
        return
    with _LOADING:
        if _installed["begun"]:  # one of them looks a member up while it is imported; or another thread was here
            return
        _installed["begun"] = True
        try:
            for entry in installed():
                _import_entry(entry)
            _installed["done"] = True
        finally:
            _installed["begun"] = _installed["done"]


def _import_entry(entry: EntryPoint) -> None:
    try:
        importlib.import_module(entry.module)
    except Exception as error:  # whatever somebody's module raises
        who = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{who}: its module {entry.module} of members cannot be imported ({cause}); mend or uninstall it"
        ) from error


def _origin(build: Callable[..., Any]) -> str:
    return f"{build.__module__}.{getattr(build, '__qualname__', build)}"


objectives = Registry("objective", "objectives")
representations = Registry("representation", "representations")
batteries = Registry("battery", "representations")
networks = Registry("network", "representations")
generators = Registry("generator", "rdm.generators")
losses = Registry("loss", "rdm.losses")
datasets = Registry("dataset", "rdm.datasets")
evaluations = Registry("evaluation", "rdm.datasets")
memories = Registry("memory", "rdm.matching.memory")
balances = Registry("balance", "rdm.matching.balance")
trackers = Registry("tracker", "rdm.trackers")
monitors = Registry("monitor", "rdm.monitors")
averages = Registry("average", "rdm.scaling.averages")
metrics = Registry("metric", "rdm.judging.metrics")
conventions = Registry("convention", "rdm.judging.metrics")
sources = Registry("source", "rdm.data.sources")
conditions = Registry("condition", "rdm.data.conditions")
engines = Registry("engine", "rdm.engines")

registries = {
    "objectives": objectives,
    "representations": representations,
    "batteries": batteries,
    "networks": networks,
    "generators": generators,
    "losses": losses,
    "datasets": datasets,
    "evaluations": evaluations,
    "memories": memories,
    "balances": balances,
    "trackers": trackers,
    "monitors": monitors,
    "averages": averages,
    "metrics": metrics,
    "conventions": conventions,
    "sources": sources,
    "conditions": conditions,
    "engines": engines,
}


def names(kind: str) -> list[str]:
    """Registered names of a kind: "objectives", "representations", "batteries", "generators", "metrics", ..."""
    if kind not in registries:
        raise InputError(f"names() takes one of {', '.join(registries)}; got {kind!r}")
    return list(registries[kind])
