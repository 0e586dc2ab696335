"""`specpipe serve` for vLLM, with a stand-in for its program that is as strict as it is."""

import json
import os
from pathlib import Path

import pytest

from specpipe.core.errors import ConfigError, StageFailed, Unsupported
from specpipe.engine.fronts.vllm_serve import LAUNCH
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, Options
from specpipe.serve.front_server import ENVIRONMENT, find_program, read_launch
from specpipe.serve.start import require_startable, start_repository
from specpipe.serve.watch import requests_in_hand
from tests.helpers.openai_servers import WORDS

STANDIN = Path(__file__).parents[2] / "standins/vllm-env"
PLAIN = ("vllm", "serve", "/models/target", "--dtype", "float32", "--enforce-eager")


def repository(folder: Path, *words: str) -> Path:
    launch = {"argv": [*PLAIN, *words], "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    (folder / LAUNCH).write_text(json.dumps(launch))
    return folder


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(STANDIN))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def test_the_server_answers_and_ends_with_the_block(tmp_path: Path) -> None:
    place = repository(tmp_path, "--speculative-config", '{"method": "ngram"}')
    require_startable(place)
    with start_repository(place, free_address(), tmp_path / "log") as server:
        assert not server.has_grpc and server.failure() is None
        assert requests_in_hand(server.address) == 0
        with Client(server.url) as client:
            assert client.generate("hi", Options(max_tokens=8)).text == "".join(WORDS)
        group = os.getpgid(server.process.pid)
    assert not server.is_alive() and group == server.process.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_flag_that_vllm_does_not_have_ends_the_start(tmp_path: Path) -> None:
    place = repository(tmp_path, "--num-draft-tokens", "3")
    with (
        pytest.raises(StageFailed, match="unrecognized arguments: --num-draft-tokens"),
        start_repository(place, free_address(), tmp_path / "log"),
    ):
        pass


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=f"{ENVIRONMENT} is {tmp_path}, and .*bin/vllm is not"):
        find_program("vllm", {ENVIRONMENT: str(tmp_path)})
    with pytest.raises(Unsupported, match="no-such-program is not on the path") as error:
        find_program("no-such-program", {"PATH": str(tmp_path)})
    assert "scripts/setup vllm" in str(error.value.hint)
    on_path = {"PATH": str(STANDIN / "bin")}
    assert find_program("vllm", on_path) == STANDIN / "bin/vllm"


def test_a_damaged_launch_is_reported(tmp_path: Path) -> None:
    assert read_launch(tmp_path) is None
    (tmp_path / LAUNCH).write_text('{"argv": 1}')
    with pytest.raises(ConfigError, match="is damaged"):
        read_launch(tmp_path)
