"""Removes the stop text at the end of an answer: Triton's models keep it, OpenAI's API does not."""

from collections.abc import Sequence


class StopTexts:
    """The text of one answer in pieces, without the stop text that ends it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""  # the end of the text, which may become a stop text

    def push(self, text: str, *, final: bool) -> str:
        """Take the next piece; return the text that no stop text can remove any more."""
        whole = self._held + text
        kept = len(whole) - (self._ending(whole) if final else self._beginning(whole))
        self._held = whole[kept:]
        return whole[:kept]

    def _ending(self, text: str) -> int:
        """Return the length of the stop text at the end of a text; 0 if there is none."""
        return next((len(stop) for stop in self._stops if text.endswith(stop)), 0)

    def _beginning(self, text: str) -> int:
        """Return the length of the longest end of a text with which a stop text begins."""
        most = min(len(text), len(self._stops[0])) if self._stops else 0
        ends = range(most, 0, -1)
        return next((n for n in ends if any(s.startswith(text[-n:]) for s in self._stops)), 0)
