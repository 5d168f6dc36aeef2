"""Set-up of the tests: shapes in annotations are checked, caches are temporary, one thread."""

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook names it)

with install_import_hook(["rdm", "objectives", "representations"], "tests.typecheck.check"):
    import rdm
    import rdm.api  # the core; members are imported when a registry is first read

import os
import tempfile

import jaxtyping
import pytest
import torch
from hypothesis import settings

os.environ["RDM_CACHE"] = tempfile.mkdtemp(prefix="rdm-test-cache-")
settings.register_profile("core", deadline=None, max_examples=4, derandomize=True)
settings.register_profile("whole", deadline=None, max_examples=10, derandomize=True)
LONGEST = [
    *(
        "test_intervals",
        "test_ray",
        "test_run_intervals",
        "test_new_domain",
        "test_demo",
        "test_degradations",
        "test_recipes",
    ),
    *(
        "test_shards",
        "test_packaging",
        "test_docs",
        "test_every_objective",
        "test_population",
        "test_feed",
        "test_surviving",
        "test_sweep",
    ),
]
torch.set_num_threads(1)  # small problems: threads only wait for each other
torch.set_warn_always(True)  # a warning that torch gives once would fail one test or another, by their order


def pytest_configure(config: pytest.Config) -> None:
    """Few drawn examples in the core suite; more where slow tests run too, as in CI."""
    settings.load_profile("core" if "not slow" in config.getoption("markexpr") else "whole")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker has one of them left at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user runs it: annotations are not checked, so that the code's own words for a wrong type are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def objective_cases() -> list:
    """Every registered objective with each of its examples."""
    return [
        pytest.param(name, example, id=f"{name}-{'-'.join(f'{k}={v}' for k, v in example.items()) or 'default'}")
        for name in rdm.names("objectives")
        for example in rdm.registry.objectives[name].examples
    ]
