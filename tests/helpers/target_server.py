"""A small server of OpenAI's API that answers greedily with a target in this process."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from specpipe.core.contracts import Sampling
from specpipe.train.answers import generate
from specpipe.train.target import Target
from tests.helpers.http_servers import listening

GREEDY = Sampling(top_k=1, temperature=0.0)
Json = dict[str, Any]


@dataclass
class TargetServer:
    """A running server: what it was asked, and how it fails."""

    target: Target
    owner: str  # `vllm` returns token ids, `someone` only texts
    url: str = ""
    bodies: list[Json] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    busy: int = 0  # requests that are still to be refused
    together: threading.Barrier | None = None  # that many requests wait for each other
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tokens(self, body: Json) -> list[int]:
        """Return the answer in tokens."""
        prompt = body.get("prompt") or self._rendered(body["messages"])
        with self.lock:
            return generate(self.target, [prompt], body["max_tokens"], GREEDY, 0)[0]

    def _rendered(self, messages: Sequence[Json]) -> list[int]:
        reader = self.target.tokenizer
        text = reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = reader(text, add_special_tokens=False)["input_ids"]
        return ids


@contextmanager
def serving_target(target: Target, owner: str) -> Iterator[TargetServer]:
    """Serve a target on a free port of loopback until the block ends."""
    found = TargetServer(target, owner)

    class Handler(_Handler):
        server_of = found

    with listening(Handler) as port:
        found.url = f"http://127.0.0.1:{port}"
        yield found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: TargetServer

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        entry = {"id": "t", "object": "model", "owned_by": self.server_of.owner}
        self._send(200, json.dumps({"object": "list", "data": [entry]}), "application/json")

    def do_POST(self) -> None:
        body, of = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server_of
        of.keys.append(self.headers["Authorization"])
        if of.busy:
            of.busy -= 1
            self._send(503, json.dumps({"error": {"message": "busy"}}), "application/json")
            return
        of.bodies.append(body)
        if of.together:
            of.together.wait(10)
        tokens = of.tokens(body)
        ended = tokens[-1] in of.target.end_ids
        if "messages" in body:
            text = of.target.tokenizer.decode(tokens, skip_special_tokens=True)
            part: Json = {"delta": {"content": text}}
        else:
            part = {"text": "", "token_ids": tokens}
        choices = [{**part, "index": 0, "finish_reason": "stop" if ended else "length"}]
        self._send(
            200,
            f"data: {json.dumps({'choices': choices})}\n\ndata: [DONE]\n\n",
            "text/event-stream",
        )

    def _send(self, status: int, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
