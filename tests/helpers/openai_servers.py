"""Strict stand-ins for servers of OpenAI's API: trtllm-serve, vLLM, Dynamo and a plain one.

Each has the fields, the objects and the errors of its kind, as its sources have them; a field that
the kind does not have is refused. The answer to any prompt is the words of `WORDS`, in steps of two
tokens; prompts of `FAILURES` fail in the way that they name.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.helpers.http_servers import listening

WORDS = ("one", " two", " thr\u00e9e", " four", " five", " six", " seven", " eight")
FIRST_TOKEN, STOP = 100, 100 + len(WORDS)
PROMPT_TOKENS = 7
_FIELDS = Path(__file__).parents[1] / "data/openai_fields.json"
Json = dict[str, Any]


@dataclass
class Kind:
    """What distinguishes a server of one kind."""

    owner: str
    per_choice: bool = False  # speculation is reported with a choice, else with the last object
    reports: bool = True
    fields: dict[str, set[str]] | None = None  # of each route; None: all are taken


def kinds() -> dict[str, Kind]:
    """Return every kind by its name."""
    known = json.loads(_FIELDS.read_text())["routes"]
    strict = {server: {r: set(f) for r, f in routes.items()} for server, routes in known.items()}
    return {
        "trtllm": Kind("tensorrt_llm", per_choice=True, fields=strict["tensorrt_llm"]),
        "trtllm-old": Kind("tensorrt_llm", reports=False, fields=strict["tensorrt_llm"]),
        "vllm": Kind("vllm"),
        "dynamo": Kind("nvidia", reports=False),
        "plain": Kind("someone", reports=False, fields=strict["openai"]),
    }


@dataclass
class Standin:
    """A running stand-in: what it was asked, and over how many connections."""

    kind: Kind
    url: str = ""
    bodies: list[Json] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    connections: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)


@contextmanager
def openai_server(kind: str, port: int = 0) -> Iterator[Standin]:
    """Serve a stand-in on a port of loopback, a free one for 0, until the block ends."""
    standin = Standin(kinds()[kind])

    class Handler(_Handler):
        server_of = standin

    with listening(Handler, port, clients_leave=True) as found:
        standin.url = f"http://127.0.0.1:{found}"
        yield standin


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Standin

    def setup(self) -> None:
        super().setup()
        self.server_of.connections += 1

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        if self.path in ("/health", "/metrics"):
            self._send(200, {})
            return
        if _route(self.path) != "models":
            self._send(404, {"detail": "Not Found"})
            return
        model = {
            "id": "tiny",
            "object": "model",
            "created": 1,
            "owned_by": self.server_of.kind.owner,
        }
        self._send(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server_of.bodies.append(body)
        self.server_of.paths.append(self.path)
        self.server_of.keys.append(self.headers["Authorization"])
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        refused = self._refused(body) or _FAILURES.get(str(prompt))
        if refused is not None:
            self._send(*refused)
            return
        answer = Answer(self.server_of.kind, self.path.endswith("chat/completions"), body)
        if not body.get("stream"):
            self._send(200, answer.whole())
            return
        try:
            self._stream(answer, str(prompt))
        except OSError:
            self.server_of.cancelled.set()
            self.close_connection = True

    def _refused(self, body: Json) -> tuple[int, Json] | None:
        known = self.server_of.kind.fields
        route = _route(self.path)
        for name in body:
            if known is not None and name not in known[route]:
                return 400, {"error": f"[{{'type': 'extra_forbidden', 'loc': ('body', '{name}')}}]"}
        if body.get("stream_options") and not body.get("stream"):
            return 400, {"error": "Stream options can only be defined when stream is true."}
        return None

    def _send(self, status: int, body: Json) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, answer: "Answer", prompt: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, chunk in enumerate(answer.chunks()):
            if number == 2 and prompt == "cut":
                self.close_connection = True
                return
            if number == 2 and prompt == "broken":
                chunk = {"error": {"message": "the engine died", "type": "server_error"}}
            self._chunk(f": a comment\ndata: {json.dumps(chunk)} \n\n")
            while prompt == "endless":
                self._chunk(f"data: {json.dumps(chunk)}\n\n")
        self._chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        content = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))


def _route(path: str) -> str:
    """Return the route of a request line; one to a proxy names the server as well."""
    return path.partition("/v1/")[2]


_FAILURES: dict[str, tuple[int, Json]] = {
    "too long": (400, {"object": "error", "message": "the prompt is too long", "type": "Bad",
                       "param": None, "code": 400}),
    "busy": (503, {"error": {"message": "the queue is full", "type": "server_error"}}),
    "fail": (500, {"detail": "KeyError"}),
    "locked": (401, {"error": {"message": "wrong key"}}),
    "media": (501, {"message": "no images", "type": "Not Implemented", "code": 501}),
}  # fmt: skip


@dataclass
class Answer:
    """One answer: its tokens in steps, and the objects that carry them."""

    kind: Kind
    chat: bool
    body: Json

    @property
    def count(self) -> int:
        """Tokens of the answer: the words, and at its natural end the stop token."""
        return min(int(self.body["max_tokens"]), len(WORDS) + 1)

    @property
    def tokens(self) -> list[int]:
        """The tokens that the server shows: trtllm-serve leaves a stop token out."""
        shown = list(range(FIRST_TOKEN, FIRST_TOKEN + self.count))
        return shown[:-1] if shown[-1] == STOP and self._leaves_stop_out else shown

    @property
    def _leaves_stop_out(self) -> bool:
        return self.kind.owner == "tensorrt_llm" and "stop_token_ids" in self.body

    @property
    def _in_tokens(self) -> bool:
        return self.body.get("detokenize") is False or bool(self.body.get("return_token_ids"))

    def whole(self) -> Json:
        text = "".join(WORDS[: self.count])
        content: Json = {"message": {"role": "assistant", "content": text}} if self.chat else {
            "text": text}  # fmt: skip
        choice = {"index": 0, **content, **self._end()}
        return {**self._head(stream=False), "choices": [choice], **self._last()}

    def chunks(self) -> Iterator[Json]:
        if self.chat:
            yield self._chunk({"delta": {"role": "assistant"}})
        steps = [self.tokens[:1], *(self.tokens[i : i + 2] for i in range(1, self.count, 2))]
        for step in steps:
            yield self._chunk(self._part(step))
        yield self._chunk({**self._part([]), **self._end()})
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield {**self._head(stream=True), "choices": [], **self._last()}

    def _part(self, step: list[int]) -> Json:
        text = "".join(WORDS[t - FIRST_TOKEN] for t in step if t < STOP)
        if self.chat:
            return {"delta": {"content": text}}
        tokens = {"token_ids": step} if self._in_tokens else {}
        hidden = self.body.get("detokenize") is False
        return {"text": "" if hidden else text, **tokens}

    def _chunk(self, part: Json) -> Json:
        return {**self._head(stream=True), "choices": [{"index": 0, **part}]}

    def _head(self, *, stream: bool) -> Json:
        name = "chat.completion" if self.chat else "text_completion"
        chunk = ".chunk" if self.chat and stream else ""
        return {"id": "x", "object": name + chunk, "created": 1, "model": "tiny"}

    def _end(self) -> Json:
        ended = self.count > len(WORDS)
        found: Json = {"finish_reason": "stop" if ended else "length", "stop_reason": None}
        if ended and self._leaves_stop_out:
            found["stop_reason"] = STOP
        if self.kind.per_choice:
            found["avg_decoded_tokens_per_iter"] = 2.0
            found["speculative_decoding"] = {
                "acceptance_rate": 0.5, "total_draft_tokens": 8, "total_accepted_draft_tokens": 4,
                "num_spec_steps": 4,
            }  # fmt: skip
        return found

    def _last(self) -> Json:
        count = len(self.tokens)
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": count,
                 "total_tokens": PROMPT_TOKENS + count}  # fmt: skip
        if self.kind.per_choice or not self.kind.reports:
            return {"usage": usage}
        counts = {"num_draft_tokens": 8, "num_accepted_draft_tokens": 4, "num_spec_steps": 4,
                  "acceptance_histogram": [1, 2, 1]}  # fmt: skip
        return {"usage": usage, "metrics": {"speculative_decoding": counts}}
