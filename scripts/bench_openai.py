"""Servers with OpenAI's completions API as sides of scripts/bench-batching."""

import http.client
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bench_prompts import encode
from bench_sides import Answer, Timing

TIMEOUT_S = 600
VERSIONS = (("/version", "version"), ("/props", "build_info"))  # of vLLM and of llama-server


@dataclass
class OpenAi:
    """A server of another project, called by one thread a stream."""

    name: str
    baseline: str
    url: str  # http://HOST:PORT
    model: str
    peer: str
    tokenizer: Any
    cached: bool  # whether the server may reuse the prefixes of earlier prompts
    is_llama: bool

    def answer(self, prompts: Sequence[str], tokens: Sequence[int], streams: int) -> Timing:
        """See `Side`."""
        pairs = zip(prompts, tokens, strict=True)
        bodies = [self._body(encode(self.tokenizer, prompt), most) for prompt, most in pairs]
        with ThreadPoolExecutor(streams) as pool:
            answers = list(pool.map(lambda body: _complete(self.url, body), bodies))
        found = [answer.tokens for answer in answers]
        if found != [*tokens]:
            raise SystemExit(f"{self.name} answered in {found} tokens instead of {[*tokens]}")
        return Timing(streams, answers)

    def _body(self, ids: Sequence[int], tokens: int) -> dict[str, Any]:
        """Return a greedy request of exactly `tokens` tokens.

        Without `cache_prompt` llama-server reuses no prefix. vLLM and specpipe reuse none with
        another salt.
        """
        salt = {} if self.cached else {"cache_salt": uuid.uuid4().hex}
        return {
            "model": self.model, "prompt": list(ids), "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
            **({"cache_prompt": self.cached} if self.is_llama else salt),
        }  # fmt: skip


def open_openai(text: str, tokenizer: Any, *, cached: bool = False, label: str = "") -> OpenAi:
    """Return a running server as a side; `text` is NAME=URL."""
    name, found, url = text.partition("=")
    if not found or urlsplit(url).scheme != "http":
        raise SystemExit(f"--openai {text}: write NAME=http://HOST:PORT")
    url = url.rstrip("/").removesuffix("/v1")
    model = _get(url, "/v1/models")["data"][0]["id"]
    version, build = (str(_get(url, path).get(key, "")) for path, key in VERSIONS)
    peer = f"{name} {version or build or '(version unknown)'}"
    return OpenAi(f"{name}{label}", "", url, model, peer, tokenizer, cached, bool(build))


def _complete(url: str, body: dict[str, Any]) -> Answer:
    """Send one request and read its stream."""
    answer, began = Answer(), time.perf_counter()
    for event in _events(url, body):
        if usage := event.get("usage"):
            answer.tokens = usage["completion_tokens"]
        for choice in event.get("choices", ()):
            answer.text += choice["text"]
            answer.last_s = time.perf_counter() - began
            answer.first_s = answer.first_s or answer.last_s
    return answer


def _events(url: str, body: dict[str, Any]) -> Iterator[Any]:
    """Yield the events of a streamed answer; exits if the server refuses the request."""
    with closing(_connect(url)) as connection:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise SystemExit(f"{url} refused a request: {response.read().decode()[:500]}")
        for line in response:
            content = line.removeprefix(b"data: ").strip()
            if line.startswith(b"data: ") and content != b"[DONE]":
                yield json.loads(content)


def _get(url: str, path: str) -> Any:
    """Return a JSON page; an empty one if the server has no such page."""
    with closing(_connect(url)) as connection:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            content = response.read()
        except OSError as error:
            raise SystemExit(f"{url} cannot be reached: {error}; start the server first") from error
    return json.loads(content) if response.status == http.client.OK else {}


def _connect(url: str) -> http.client.HTTPConnection:
    place = urlsplit(url)
    return http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=TIMEOUT_S)
