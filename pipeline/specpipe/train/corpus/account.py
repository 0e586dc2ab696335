"""Counts what became of every record: learned, cut, or left out, each with its reason."""

from collections import Counter
from dataclasses import dataclass, field

LOUD = 0.1  # share of records left out from which a training warns


@dataclass
class Account:
    """The records of a training's text, counted while they are read."""

    what: str  # what a record is called: `documents`, `prompts`
    read: int = 0
    cut: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    first: dict[str, str] = field(default_factory=dict)  # the first place of each reason

    def leave_out(self, reason: str, place: str) -> None:
        """Count a record that nothing is learned from."""
        self.left_out[reason] += 1
        self.first.setdefault(reason, place)

    @property
    def is_loud(self) -> bool:
        """Whether so much is left out that the user should look at it."""
        return sum(self.left_out.values()) > LOUD * self.read

    def sentences(self) -> list[str]:
        """Return what was cut and left out, for people; empty if nothing was."""
        lines = []
        if self.cut:
            lines.append(f"{self.cut} of {self.read} {self.what} were cut at train.sequence_length")
        if self.left_out:
            mark = "warning: " if self.is_loud else ""
            lines.append(f"{mark}{sum(self.left_out.values())} of {self.read} {self.what} were "
                         f"left out: {self.reasons()}")  # fmt: skip
        return lines

    def reasons(self) -> str:
        """Return every reason with its count and its first place."""
        return "; ".join(
            f"{count} for: {reason} (first: {self.first[reason]})"
            for reason, count in self.left_out.most_common()
        )

    def facts(self) -> dict[str, str | int]:
        """Return the counts for a report; empty if nothing was cut or left out."""
        found: dict[str, str | int] = {f"{self.what} cut": self.cut} if self.cut else {}
        for reason, count in sorted(self.left_out.items()):
            found[f"{self.what} left out: {reason}"] = count
        return found
