"""The run that is validated, and the facts that all steps of a validation share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.endpoint import Endpoint
from specpipe.plan.gates import Plain, plain_by, speculates
from specpipe.validate.questions import Questions
from specpipe.validate.trials import Arm


@dataclass(frozen=True)
class Subject:
    """The run that is validated, and the reference."""

    config: RunConfig
    endpoint: Endpoint
    model: Path  # the reference
    questions: Questions
    versions: Mapping[str, str]
    url: str | None = None  # of a server that is already running
    scenarios: tuple[str, ...] = ()  # in addition to `answers`
    repository: Path | None = None  # that is served
    notify: Callable[[str], None] = lambda text: None

    @property
    def plain(self) -> Plain:
        """Return what decodes without speculation; a server at a URL gets no baseline."""
        found = plain_by(self.config, self.endpoint.text)
        return "none" if found == "build" and self.url is not None else found

    @property
    def judged(self) -> Arm:
        """Return the arm that the gates apply to."""
        return "speculative" if speculates(self.config) else "plain"
