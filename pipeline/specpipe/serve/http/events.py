"""Server-sent events of OpenAI's API: the objects of a stream, in order."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from specpipe.core.errors import StageFailed

Json = dict[str, Any]
_DONE = "[DONE]"


def read_events(lines: Iterable[bytes]) -> Iterator[Json | None]:
    """Yield the object of every event, and None for the event that ends the stream.

    An event is lines up to an empty one; its data may stand in several of them. Other fields and
    comments are skipped. Raises StageFailed for data that is not JSON.
    """
    data: list[str] = []
    for line in lines:
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        if text.startswith("data:"):
            data.append(text.removeprefix("data:").strip())
        elif not text and data:
            yield _object("\n".join(data))
            data = []
    if data:  # a stream that was cut after its last line
        yield _object("\n".join(data))


def _object(text: str) -> Json | None:
    return None if text == _DONE else parse_object(text)


def parse_object(text: str | bytes) -> Json:
    """Return a JSON object; raises StageFailed if it is none."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise StageFailed(f"the server sent no JSON ({error}): {text[:80]!r}") from error
    if not isinstance(found, dict):
        raise StageFailed(f"the server sent {text[:80]!r} where an object was expected")
    return found


def find(values: Any, path: str) -> Any:
    """Return the value at a path of names with dots; None where there is none.

    A list on the way stands for its first item.
    """
    for name in path.split("."):
        if isinstance(values, list):
            values = values[0] if values else None
        values = values.get(name) if isinstance(values, dict) else None
    return values
