"""`specpipe generate` against real servers: with the engine's own loop, and with Triton's."""

import json

import pytest

from tests.helpers.servers import PROMPT, Served, cli_generate

pytestmark = pytest.mark.e2e


@pytest.fixture(params=["server", "bls_server"])
def looped(request: pytest.FixtureRequest) -> Served:
    """Return a server with its loop in either place."""
    found: Served = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("options", [(), ("--stream",), ("--model", "ensemble")])
def test_generate_asks_in_the_chat_template_with_or_without_the_config(
    config: bool, options: tuple[str, ...], looped: Served
) -> None:
    assert looped.client.endpoint.chats
    for raw_, prompt in (((), "<|user|>hi<|end|><|assistant|>"), (("--raw",), "hi")):
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
