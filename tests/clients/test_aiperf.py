"""Unchanged aiperf measures the served quickstart, with its drafts.

Not part of scripts/test: run scripts/test-clients
"""

import json
from typing import Any

import pytest

from tests.helpers.clients import Front, needs_clients, run_client

pytestmark = needs_clients
REQUESTS, TOKENS = 12, 24


@pytest.fixture(scope="module", params=["chat", "completions"])
def measured(
    front: Front, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return aiperf's summary of a short run."""
    folder = tmp_path_factory.mktemp("aiperf")
    run_client(
        ["aiperf", "profile", "--model", front.model, "--tokenizer", front.checkpoint,
         "--url", front.url, "--endpoint-type", request.param, "--streaming", "--ui", "None",
         "--request-count", str(REQUESTS), "--concurrency", "2", "--isl", "64",
         "--osl", str(TOKENS), "--random-seed", "1", "--output-artifact-dir", folder / "out",
         "--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0",
         "--use-server-token-count"],
        folder, variables={"HF_HUB_OFFLINE": ""},  # offline, it takes no folder for a tokenizer
    )  # fmt: skip
    found: dict[str, Any] = json.loads((folder / "out/profile_export_aiperf.json").read_text())
    return found


def test_every_request_is_answered_and_counted(measured: dict[str, Any]) -> None:
    assert measured["request_count"]["avg"] == REQUESTS and not measured["error_summary"]
    assert measured["usage_completion_tokens"]["avg"] == TOKENS
    assert 0 < measured["time_to_first_token"]["avg"] < measured["request_latency"]["avg"]


def test_it_shows_how_drafts_were_accepted(measured: dict[str, Any]) -> None:
    accepted, drafted = (
        measured[f"total_{name}"]["avg"] for name in ("accepted_draft_tokens", "draft_tokens")
    )
    assert 0 <= accepted < drafted
    steps = measured["total_spec_decode_steps"]["avg"]
    length = measured["spec_decode_token_weighted_acceptance_length"]["avg"]
    assert length == pytest.approx(1 + accepted / steps, abs=0.01)
