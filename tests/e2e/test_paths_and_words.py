"""Workspaces with any name, and stop words with special tokens in every model of a repository."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.serve.address import free_address
from specpipe.serve.tritonserver import start_server
from tests.helpers import raw_requests as raw
from tests.helpers.servers import Served

pytestmark = pytest.mark.e2e
ENGINE = {"backend": "openvino", "max_batch_size": 2, "max_input_len": 100, "max_seq_len": 400}


def test_a_workspace_with_any_name_is_built_and_served(tiny: Path, tmp_path: Path) -> None:
    """Triton's Python models are started through a shell, and read names as ASCII."""
    root = tmp_path / "jürgen 模型 it's; 'x' & y"
    model = Path(shutil.copytree(tiny, root / "modèle"))
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}質問{{ m.content }}{% endfor %}", encoding="utf-8"
    )
    path = root / "run.yaml"
    values = {"name": "tiny", "target": {"model": str(model)}, "engine": ENGINE}
    path.write_text(json.dumps(values), encoding="utf-8")
    config = read_config(path)
    workspace = Workspace(root, config.name)
    run = Run(config, workspace)
    build(run)
    with start_server(workspace.repository, free_address(), root / "log") as endpoint:
        served = Served(run, endpoint)
        got = raw.stream(served.url, "ensemble", {
            "text_input": "Grüße, 東京", "max_tokens": 8, "exclude_input_in_output": True,
        })  # fmt: skip
        assert raw.text(got) == served.plain_text("Grüße, 東京", 8)


@pytest.fixture(scope="module")
def spoken(server: Served) -> tuple[str, list[int], int]:
    """Return a prompt, its answer without an end, and where a special token is in the answer."""
    for number in range(40):
        prompt = f"The quick brown fox {number}"
        answer = server.plain(prompt, 40, end_id=-1)
        found = [n for n, token in enumerate(answer) if token in (0, 1, 2) and n >= 2]
        if found and answer[found[0]] not in answer[: found[0]]:
            return prompt, answer, found[0]
    raise AssertionError("no answer has a special token")


@pytest.mark.parametrize("name", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("stream", [True, False])
def test_text_models_stop_at_a_special_token(
    server: Served, spoken: tuple[str, list[int], int], name: str, stream: bool
) -> None:
    prompt, answer, at = spoken
    got = raw.stream(server.url, name, {
        "text_input": prompt, "max_tokens": 40, "stream": stream, "end_id": -1,
        "exclude_input_in_output": True, "return_num_output_tokens": True,
        "stop_words": server.tokenizer.tokenizer.id_to_token(answer[at]),
    })  # fmt: skip
    assert raw.text(got) == server.tokenizer.decode(answer[:at])
    counts = [r.as_numpy("num_output_tokens") for r in got]
    assert [int(c.reshape(-1)[0]) for c in counts if c is not None][-1] == at + 1


def test_the_tokens_of_preprocessing_stop_the_engine_there_too(
    server: Served, spoken: tuple[str, list[int], int]
) -> None:
    prompt, answer, at = spoken
    word = server.tokenizer.tokenizer.id_to_token(answer[at])
    found = raw.unary(server.url, "preprocessing", {
        "QUERY": prompt, "REQUEST_OUTPUT_LEN": 40, "END_ID": -1, "STOP_WORDS_DICT": word,
    })  # fmt: skip
    ids = found.as_numpy("INPUT_ID")
    got = raw.stream(server.url, "tensorrt_llm", {
        "input_ids": ids, "input_lengths": ids.shape[1], "request_output_len": 40,
        "stop_words_list": found.as_numpy("STOP_WORDS_IDS"), "streaming": True,
    })  # fmt: skip
    rows = [r.as_numpy("output_ids") for r in got]
    tokens = np.concatenate([row.reshape(-1) for row in rows if row is not None])
    assert tokens.tolist() == answer[: at + 1]
