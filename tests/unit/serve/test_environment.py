"""What a server on a CPU has in its environment."""

from pathlib import Path

import pytest

from specpipe.serve.tritonserver import ServerHome, environment

HOME = ServerHome(Path("server"), Path("backends"), Path("caches"), "libraries")


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_memory_comes_in_huge_pages_unless_the_user_decides(
    own: str | None, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    assert dict(environment(HOME, Path("venv/bin")))["GLIBC_TUNABLES"] == given


def test_the_servers_libraries_come_before_those_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "mine")
    monkeypatch.setenv("PATH", "programs")
    found = dict(environment(HOME, Path("venv/bin")))
    assert found["LD_LIBRARY_PATH"] == "libraries:mine"
    assert found["PATH"] == "venv/bin:programs" and found["VIRTUAL_ENV"] == "venv"
