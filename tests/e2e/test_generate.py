"""`specpipe generate` against real servers: with the engine's own loop, and with Triton's."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Served, cli_generate

pytestmark = pytest.mark.e2e

PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown"


@pytest.fixture(scope="module", params=["engine", "bls"])
def looped(request: pytest.FixtureRequest, serve, tiny_draft: Path) -> Iterator[Served]:
    """Return a server that drafts with a second model, its loop in either place."""
    draft = {"method": "draft_model", "draft": {"model": str(tiny_draft)}, "num_draft_tokens": 3,
             "draft_length": "fixed"}  # fmt: skip
    with serve(speculation=draft, serving={"loop": request.param}) as served:
        yield served


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("options", [(), ("--stream",), ("--model", "ensemble")])
def test_generate_asks_in_the_chat_template_with_or_without_the_config(
    config: bool, options: tuple[str, ...], looped: Served
) -> None:
    template = looped.client.endpoint.template
    assert template is not None
    for raw_, prompt in (((), template.wrap("hi")), (("--raw",), "hi")):
        words = ("--json", "--max-tokens", "12", *options, *raw_, "hi")
        done = cli_generate(looped, *words, config=config)
        assert done.exit_code == 0, done.output
        answer = json.loads(done.stdout.splitlines()[0])
        assert answer["text"] == looped.tokenizer.decode(looped.plain(prompt, 12))
        assert answer["output_tokens"] == len(looped.plain(prompt, 12))


def test_generate_turns_speculation_off_for_one_request(looped: Served) -> None:
    for model in ("ensemble", "tensorrt_llm_bls"):
        for options, drafts in ((("--num-draft-tokens", "0"), False), ((), True)):
            words = ("--json", "--raw", "--max-tokens", "40", "--model", model, *options, PROMPT)
            done = cli_generate(looped, *words)
            assert done.exit_code == 0, done.output
            answer = json.loads(done.stdout.splitlines()[0])
            assert (answer["total_draft_tokens"] > 0) == drafts
