"""The report in a headless browser: every view of it, and its print.

Not part of scripts/test: run scripts/test-clients
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from specpipe.config.scenarios import SCENARIOS
from specpipe.validate.report import write_report
from tests.helpers.clients import needs_clients, run_client
from tests.helpers.served_model import ServedModel
from tests.helpers.serving_faults import CAUGHT
from tests.helpers.toy_reports import report_on

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    *needs_clients,
    pytest.mark.skipif(BROWSER is None, reason="apt-get install chromium: no browser is on PATH"),
]
READABLE = 4.5  # WCAG 2.2, 1.4.3, of text of any size
MODELS = {"passed": ServedModel, "failed": next(iter(CAUGHT))}


@pytest.fixture(scope="module", params=MODELS)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what a browser shows of the report on a toy model without or with a fault."""
    weights = tmp_path_factory.mktemp("report") / "toy.gguf"
    weights.touch()
    page = write_report(report_on(MODELS[request.param](), weights, *SCENARIOS), weights.parent)
    program = Path("tests/clients/browse.py").absolute()
    return json.loads(run_client(["python", program, page, str(BROWSER)], page.parent))


def test_the_page_loads_nothing_else_and_reports_no_errors(shown: Any) -> None:
    assert shown["messages"] == [] and len(shown["requests"]) == 1


def test_the_page_fits_narrow_and_wide_windows(shown: Any) -> None:
    assert {name: view["wide"] for name, view in shown["views"].items() if view["wide"] > 0} == {}


def test_four_pictures_are_seen_whole(shown: Any) -> None:
    for view in shown["views"].values():
        assert len(view["pictures"]) == 4 and view["cut"] == []
        assert all(width > 100 and height > 50 for width, height in view["pictures"])


def test_texts_are_readable_in_both_colour_schemes(shown: Any) -> None:
    for view in shown["views"].values():
        assert [text for text in view["contrasts"] if text[1] < READABLE] == []
    views = shown["views"]
    assert views["1400 dark"]["page"] != views["1400 light"]["page"]


def test_the_print_has_a_few_pages(shown: Any) -> None:
    assert 1 <= shown["pdf_pages"] <= 8
