"""The documentation builds without a warning, and what is wrong with it fails the build."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OUTPUTS = {"build", "engines", "triton_repo", "reports", "deploy"}


def build(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Build the site of a checkout strictly into `folder/build/site`."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of what the site is made of; links find the other files of this checkout."""
    for path in Path().iterdir():
        if path.name == "docs":
            shutil.copytree(path, tmp_path / "docs")
        elif path.suffix in {".md", ".yml"}:
            shutil.copy(path, tmp_path)
        elif (
            path.name not in {"build", "engines", "triton_repo", "reports"} and path.name[0] != "."
        ):
            (tmp_path / path.name).symlink_to(path.absolute())
    return tmp_path


@pytest.mark.slow
def test_the_site_builds_strictly_and_refers_to_no_other_host(checkout: Path) -> None:
    done = build(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    site = checkout / "build/site"
    assert (site / "search/search_index.json").is_file()
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.read_text())
        assert loaded and not [url for url in loaded if "//" in url], page


FAULTS = [  # page, what is added to it, and a part of the warning
    ("docs/unlisted.md", "# A page\n", 'not included in the "nav"'),
    ("docs/serving.md", "[away](absent-page.md)\n", "absent-page.md"),
    ("docs/serving.md", "[away](gpu.md#no-such-place)\n", "#no-such-place"),
    ("README.md", "[away](docs/absent-target.md)\n", "absent-target.md"),
    ("README.md", "[away](DECISIONS.md#no-such-decision)\n", "#no-such-decision"),
    ("DECISIONS.md", "[away](scripts/absent)\n", "scripts/absent"),
]


@pytest.mark.slow
def test_a_page_without_a_place_and_every_broken_link_fail_the_build(checkout: Path) -> None:
    """A strict build fails for any warning, and each fault has its own."""
    for page, text, _ in FAULTS:
        with (checkout / page).open("a") as file:
            file.write("\n" + text)
    done = build(checkout)
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    for page, _, message in FAULTS:
        assert any(message in line for line in warnings), (page, done.stderr)


@pytest.mark.slow
def test_links_between_the_root_and_docs_lead_to_pages_of_the_site(checkout: Path) -> None:
    (checkout / "docs/index.md").write_text(
        "# Start\n\n[a](../DECISIONS.md) [b](../LICENSE) [c](gpu.md)\n\n```text\n[d](x.md)\n```\n"
    )
    build(checkout)
    html = (checkout / "build/site/index.html").read_text()
    assert '<p><a href="decisions.html">a</a> b <a href="gpu.html">c</a></p>' in html
    assert "[d](x.md)" in html


def test_the_index_of_decisions_lists_each_of_them_once() -> None:
    index, *_ = (text := Path("DECISIONS.md").read_text()).split("\n## 1. ")
    listed = re.findall(r"^- \[(\d+\. .+)\]\(#", index, re.MULTILINE)
    headings = re.findall(r"^## (\d+\. .+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(headings)
    assert [int(heading.split(".")[0]) for heading in headings] == [*range(1, len(headings) + 1)]
