"""Repositories with names that Triton cannot take are served through a link."""

from pathlib import Path

import pytest

from specpipe.core.errors import ConfigError
from specpipe.core.paths import is_plain, require_plain
from specpipe.serve.plain import plain_path

ODD = ["jürgen", "模型", "a b", "it's", 'q"x', "a$HOME", "a;b", "a*b", "a\\b", "a&b", "new\nline"]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_replaced_by_a_link(name: str, tmp_path: Path) -> None:
    repository, folder = tmp_path / name / "run", tmp_path / "server"
    repository.mkdir(parents=True)
    folder.mkdir()
    (repository / "file").write_text("x")
    served = plain_path(repository, folder)
    assert served == folder / "served" and is_plain(served)
    assert (served / "file").read_text() == "x"


@pytest.mark.parametrize("name", ["run", "run-1.0_x", "a@b=c,d:e+f%~"])
def test_a_plain_name_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert plain_path(tmp_path / name, tmp_path) == (tmp_path / name).resolve()


def test_a_temporary_folder_with_an_odd_name_is_refused_with_the_reason(tmp_path: Path) -> None:
    odd = tmp_path / "ü b"
    odd.mkdir()
    with pytest.raises(ConfigError, match="cannot take the temporary folder .*\n.*set TMPDIR"):
        require_plain(odd)
    with pytest.raises(ConfigError, match="without quotes, and they read paths as ASCII"):
        plain_path(odd, odd)
