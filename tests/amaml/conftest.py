"""The kernel, built for the tests if the environment has none yet."""

from __future__ import annotations

import pytest

from amaml.kernel import build, library


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C++ compiler's path; tests that need one are skipped where there is none."""
    found = build.find_compiler()
    if found is None:
        pytest.skip("no C++ compiler on this machine")
    return found


@pytest.fixture(scope="session")
def kernel(compiler: str) -> library.Kernel:
    """The kernel that solves use."""
    if library.kernel() is None:
        build.build(compiler)
        library._loaded.cache_clear()
    found = library.kernel()
    assert found is not None, "the kernel was built and couldn't be loaded"
    return found
