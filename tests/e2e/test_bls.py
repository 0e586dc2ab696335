"""The GPU repository's loop over draft and target, in a real tritonserver, with CPU engines."""

import pytest

from tests.e2e import raw
from tests.e2e.conftest import Served

pytestmark = pytest.mark.e2e

PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown"


@pytest.fixture(scope="module")
def server(serve, tiny_draft):
    speculation = {"method": "draft_model", "draft": {"model": str(tiny_draft)},
                   "num_draft_tokens": 3}  # fmt: skip
    with serve(speculation=speculation, serving={"loop": "bls", "max_queue_size": 3}) as served:
        yield served


def asked(**more: object) -> dict[str, object]:
    return {"text_input": PROMPT, "max_tokens": 40, "exclude_input_in_output": True, **more}


def expected(server: Served, max_tokens: int = 40, **sampling: object) -> str:
    return server.tokenizer.decode(server.plain(PROMPT, max_tokens, **sampling))


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_a_stream_is_plain_decoding(model, server):
    results = raw.stream(server.url, model, asked(stream=True))
    assert raw.text(results) == expected(server)
