"""The engine's socket under a real tritonserver: where it lies, and the heartbeat that it gives."""

import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from specpipe.runtime.engine_client import ping_engine
from specpipe.runtime.failures import EngineError
from specpipe.serve.client import Options
from tests.helpers import raw_requests as raw
from tests.helpers.servers import Served

pytestmark = pytest.mark.e2e

ASKED = {"text_input": "The quick brown", "max_tokens": 40, "exclude_input_in_output": True}


def socket_of(server: Served) -> Path:
    assert server.endpoint.engine_socket is not None
    return server.endpoint.engine_socket


def test_only_this_user_can_enter_the_folder_of_the_socket(server: Served) -> None:
    folder = socket_of(server).parent.stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o700, os.geteuid())


def test_the_engine_tells_that_it_moves_whatever_it_does(server: Served) -> None:
    before = server.heartbeat()
    pieces = server.client.stream("The quick brown", Options(max_tokens=2000, end_id=-1))
    next(pieces)
    busy = server.heartbeat()
    assert busy.active == 1 and busy.rounds > before.rounds
    pieces.close()


def test_an_engine_that_stands_still_is_noticed_and_goes_on_when_it_may(server: Served) -> None:
    (engine,) = [pid for pid, name in server.endpoint.models.items() if name == "tensorrt_llm"]
    os.kill(engine, signal.SIGSTOP)
    try:
        with pytest.raises(EngineError, match="has not answered"):
            ping_engine(socket_of(server), timeout_s=1)
    finally:
        os.kill(engine, signal.SIGCONT)
    server.await_idle()  # the stream of another test may be about to end
    results = raw.stream(server.url, "ensemble", ASKED)
    assert raw.text(results) == server.tokenizer.decode(server.plain("The quick brown", 40))


def test_models_of_a_server_that_was_started_by_hand_meet_and_leave_nothing(
    serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = f"specpipe-{os.geteuid()}-*"
    before = set(Path(tempfile.gettempdir()).glob(ours))
    monkeypatch.setattr("specpipe.serve.tritonserver.FOLDER", "SPECPIPE_UNUSED")
    with serve() as server:
        made = set(Path(tempfile.gettempdir()).glob(ours)) - before
        assert made and all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in made)
        assert server.endpoint.engine_socket is None
        results = raw.stream(server.url, "ensemble", ASKED)
        assert raw.text(results) == server.tokenizer.decode(server.plain("The quick brown", 40))
    assert not any(path.exists() for path in made)
