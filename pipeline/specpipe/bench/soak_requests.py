"""What the clients of a soak test send: every kind of request, and how its outcome is judged."""

import http.client
import json
import random
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from specpipe.bench.malformed import MALFORMED, PROMPT_TENSOR, send_malformed
from specpipe.core.errors import ConfigError, StageFailed, Unavailable, Unsupported
from specpipe.serve.client import Client, Options, collect
from specpipe.serve.refusals import BUSY
from specpipe.serve.tritonserver import RunningServer

PROMPTS = ("The quick brown fox", "Pack my box with", "How vexingly quick", "Grüße aus")
ANSWER = Options(max_tokens=24)
FEW = Options(max_tokens=4, end_id=-1)
HALF_OPEN = 32  # connections to the engine's socket that stay open at a time
RIGHT, QUEUE_FULL = "right", "queue full"
WRONG, FAILED = "WRONG", "FAILED"  # how the outcomes that fail a soak test begin


@dataclass
class SoakSubject:
    """The server under test, and its answers when nothing else runs."""

    server: RunningServer
    client: Client
    answers: Mapping[str, str]  # by prompt
    long_prompt: tuple[int, ...]  # in tokens
    long_answer: tuple[int, ...]
    endless: int  # tokens of an answer whose client disconnects before its end
    half_open: deque[socket.socket] = field(default_factory=lambda: deque(maxlen=HALF_OPEN))

    def front(self, rng: random.Random) -> str:
        """Return the name of any model that takes text."""
        return rng.choice(self.client.endpoint.texts).name


Send = Callable[[SoakSubject, random.Random], str]  # sends one request; returns the outcome


def judge(is_right: bool) -> str:
    """Return the outcome of a comparison."""
    return RIGHT if is_right else WRONG


def is_busy(message: str) -> bool:
    """Tell whether a server refused a request because its queue was full."""
    return any(words in message.lower() for words in BUSY)


def send_whole(subject: SoakSubject, rng: random.Random) -> str:
    """Request an answer in one piece."""
    prompt = rng.choice(PROMPTS)
    answer = subject.client.generate(prompt, ANSWER, model=subject.front(rng))
    return judge(answer.text == subject.answers[prompt])


def send_streamed(subject: SoakSubject, rng: random.Random) -> str:
    """Request a streamed answer."""
    prompt = rng.choice(PROMPTS)
    answer = collect(subject.client.stream(prompt, ANSWER, model=subject.front(rng)))
    return judge(answer.text == subject.answers[prompt])


def send_long(subject: SoakSubject, rng: random.Random) -> str:
    """Send a long prompt while others stream."""
    answer = collect(subject.client.stream_tokens(subject.long_prompt, FEW))
    return judge(answer.tokens == subject.long_answer)


def send_refused(subject: SoakSubject, rng: random.Random) -> str:
    """Send a request that exceeds the limits of every engine."""
    try:
        subject.client.generate(rng.choice(PROMPTS), Options(max_tokens=10**6))
    except (ConfigError, Unsupported):
        return RIGHT
    return WRONG


def send_garbage(subject: SoakSubject, rng: random.Random) -> str:
    """Send a malformed request; a refusal is right, an internal error is wrong."""
    name = rng.choice(list(MALFORMED))
    message = send_malformed(subject.server.address.grpc, subject.front(rng), name)
    if message is None:
        return f"{WRONG}: {name}: no answer"
    if is_busy(message):
        return QUEUE_FULL
    odd = "answered" in message or "INTERNAL" in message or "internal error" in message
    return f"{WRONG}: {name}: {message[:80]}" if odd else RIGHT


def send_half(subject: SoakSubject, rng: random.Random) -> str:
    """Connect to the engine's socket and send half a request; the oldest of many is closed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(subject.server.engine_socket))
    connection.sendall(b'{"request_id": "')
    if len(subject.half_open) == HALF_OPEN:
        subject.half_open[0].close()
    subject.half_open.append(connection)
    return RIGHT


def disconnect_http(subject: SoakSubject, rng: random.Random) -> str:
    """Disconnect from an HTTP stream after its first pieces."""
    address = subject.server.address
    connection = http.client.HTTPConnection(address.host, address.http_port, timeout=60)
    request = {
        PROMPT_TENSOR: rng.choice(PROMPTS),
        "max_tokens": subject.endless,
        "stream": True,
        "end_id": -1,
    }
    try:
        path = f"/v2/models/{subject.front(rng)}/generate_stream"
        connection.request("POST", path, json.dumps(request))
        answer = connection.getresponse()
        lines = [answer.readline() for _ in range(rng.choice((1, 3, 9)))]
    finally:
        connection.close()
    if is_busy(lines[0].decode()):
        return QUEUE_FULL
    is_right = lines[0].startswith(b"data: ") and b"error" not in lines[0]
    return RIGHT if is_right else f"{WRONG}: {lines[0][:60]!r}"


def cancel_grpc(subject: SoakSubject, rng: random.Random) -> str:
    """Cancel a gRPC stream after its first pieces."""
    options = Options(max_tokens=subject.endless, end_id=-1)
    pieces = subject.client.stream(rng.choice(PROMPTS), options)
    for _ in range(3):
        next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    return RIGHT


KINDS: Mapping[str, Send] = {
    "whole": send_whole,
    "streamed": send_streamed,
    "long": send_long,
    "refused": send_refused,
    "garbage": send_garbage,
    "half-open": send_half,
    "http-disconnect": disconnect_http,
    "grpc-cancel": cancel_grpc,
}
RISKY = ("grpc-cancel",)  # can crash or hang Triton 2.51 itself (DECISIONS.md, 5)


def choose_kinds(asked: Sequence[str], server: RunningServer, client: Client) -> dict[str, Send]:
    """Return the kinds to send; without `asked`, all that the server supports and can survive.

    Raises Unsupported for a kind in `asked` that the server does not support.
    """
    missing = dict(_unsupported(server, client))
    for name in asked:
        if name in missing:
            raise Unsupported(f"kind {name}: {missing[name]}", hint="leave it out")
    names = asked or [name for name in KINDS if name not in missing and name not in RISKY]
    return {name: KINDS[name] for name in names}


def _unsupported(server: RunningServer, client: Client) -> dict[str, str]:
    """Return why the server does not support a kind, for every such kind."""
    text, found = client.endpoint.text, {}
    if client.endpoint.tokens is None:
        found["long"] = "the server has no model that takes tokens"
    if server.engine_socket is None:
        found["half-open"] = "the server has no engine socket"
    if not text.decoupled:
        reason = f"{text.name} answers in one piece and cannot stream"
        found |= dict.fromkeys(("streamed", "http-disconnect", "grpc-cancel"), reason)
    if text.tensors.prompt != PROMPT_TENSOR:
        reason = f"{text.name} has no tensor {PROMPT_TENSOR}"
        found |= dict.fromkeys(("garbage", "http-disconnect"), reason)
    return found


def attempt(send: Send, subject: SoakSubject, rng: random.Random) -> str:
    """Return the outcome of one request; an error is an outcome too."""
    try:
        return send(subject, rng)
    except Unavailable as error:
        if is_busy(str(error)):
            return QUEUE_FULL
        return f"{FAILED}: {str(error).splitlines()[0][:60]}"
    except (StageFailed, ConfigError, Unsupported, OSError, http.client.HTTPException) as error:
        return f"{FAILED}: {type(error).__name__}: {str(error).splitlines()[0][:60]}"
