"""Distance of the engine's distributions from the reference's, on teacher-forced text.

With the logits after every token, the Kullback-Leibler divergence is exact. Where a server returns
only prompt log probabilities, the vocabulary is seen as three outcomes: the actual token, the
engine's likeliest token and the rest. The divergence over them is a lower bound of the exact one.
"""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import IO

import numpy as np

from specpipe.core.contracts import Floats
from specpipe.core.statistics import percentile
from specpipe.runtime.context import most_positions
from specpipe.runtime.prompt_scores import log_normalizers
from specpipe.serve.client import Client, PromptScores
from specpipe.validate.arms import ServedArm
from specpipe.validate.metrics import Figure
from specpipe.validate.scenarios import Grading, Measured, Result, Scenario, Setup, Sheet
from specpipe.validate.trials import Arm

MOST_BYTES = 256 << 20  # of logits on the disk
TOP = 10
LEAST = 1e-12  # of a probability


@dataclass(frozen=True)
class EngineReading:
    """What a server returned for one text: a part of the file of logits, or scores."""

    tokens: tuple[int, ...]
    scores: PromptScores | None = None
    logits: IO[bytes] | None = None
    begin: int = 0  # byte of the first row
    width: int = 0  # of a row, which may have padding


@dataclass(frozen=True)
class EngineReadings:
    """The readings of one server, whose arms share an engine."""

    arms: tuple[Arm, ...]
    found: tuple[EngineReading, ...]
    file: IO[bytes] | None = None  # of the logits; `grade` closes it

    @property
    def exact(self) -> bool:
        """Whether whole distributions are known."""
        return all(reading.logits is not None for reading in self.found)


@dataclass(frozen=True)
class Distances:
    """The comparison at every position of all texts."""

    divergences: tuple[float, ...]  # nats
    first: tuple[bool, ...]  # the likeliest token is the same
    overlap: tuple[float, ...]  # share of the reference's ten likeliest tokens; empty: not known


def texts(setup: Setup) -> list[tuple[int, ...]]:
    """Return the prompts with the reference's answers, cut to what fits."""
    vocabulary, engine = setup.questions.tokenizer.vocab_size, setup.config.engine
    longest = min(most_positions(vocabulary), engine.max_input_len, engine.max_seq_len - 1)
    found, left = [], MOST_BYTES // (4 * vocabulary)
    for number, question in enumerate(setup.questions.asked):
        answer = setup.expected[number].tokens if number in setup.expected else ()
        tokens = (*question.tokens, *answer)[: min(longest, left)]
        left -= len(tokens)
        if len(tokens) > 1:
            found.append(tokens)
    return found


def why_omitted(setup: Setup) -> str | None:
    """Return why the engine's distributions are not known."""
    model = setup.endpoint.tokens
    if model is None or not (model.gives_context_logits or model.tensors.scores_flag):
        return "this server returns neither the logits nor the log probabilities of a prompt"
    return None


def measure(client: Client, setup: Setup, arms: Sequence[ServedArm]) -> EngineReadings:
    """Let the server read the texts; logits are kept in a temporary file."""
    model = client.endpoint.tokens
    names = tuple(arm.arm for arm in arms)
    if model is None or not model.gives_context_logits:
        scored = (EngineReading(t, client.prompt_scores(t)) for t in texts(setup))
        return EngineReadings(names, tuple(scored))
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the grader reads it later
    found = []
    for tokens in texts(setup):
        begin, width = file.tell(), 0
        for block in client.context_logits(tokens):
            width = block.shape[-1]
            file.write(np.ascontiguousarray(block, np.float32).tobytes())
        found.append(EngineReading(tokens, None, file, begin, width))
    return EngineReadings(names, tuple(found), file)


def grade(measured: Measured, grading: Grading) -> Result:
    """Return the divergence and the agreement of the likeliest tokens."""
    figures: dict[str, dict[Arm, Figure]] = {}
    rows = []
    for found in measured.extra:
        assert isinstance(found, EngineReadings)
        with found.file or nullcontext():
            distances = compare_readings(found, grading)
        for name, value in _figures(distances).items():
            figures.setdefault(name, {}).update(dict.fromkeys(found.arms, value))
        rows.append(_row(found, distances))
    head = ("engine of", "positions", "KL mean, nats", "KL P99, nats", "top-1 agreement",
            f"top-{TOP} agreement", "KL is")  # fmt: skip
    note = "Reference against engine, on the prompts and the reference's answers."
    sheet = Sheet("Accuracy on teacher-forced text", note, head, rows)
    return Result("accuracy", figures=figures, sheets=(sheet,))


def compare_readings(found: EngineReadings, grading: Grading) -> Distances:
    """Compare all texts, position by position."""
    parts = [_compare(r, grading.judge.rows(r.tokens, len(r.tokens))) for r in found.found]
    return Distances(
        *(tuple(chain.from_iterable(getattr(p, name) for p in parts))
          for name in ("divergences", "first", "overlap"))
    )  # fmt: skip


def _compare(reading: EngineReading, theirs: Floats) -> Distances:
    if reading.logits is not None:
        ours = _log_probs(reading)
        width = min(theirs.shape[1], ours.shape[1])
        return _exact(theirs[:, :width], ours[:, :width])
    assert reading.scores is not None
    return _coarse(theirs[:-1], reading.tokens[1:], reading.scores)


def _log_probs(reading: EngineReading) -> Floats:
    assert reading.logits is not None
    reading.logits.seek(reading.begin)
    stored = reading.logits.read(4 * len(reading.tokens) * reading.width)
    rows = np.frombuffer(stored, np.float32).reshape(-1, reading.width).astype(np.float64)
    found: Floats = rows - log_normalizers(rows)[:, None]
    return found


def _exact(theirs: Floats, ours: Floats) -> Distances:
    divergences = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    best, found = (np.argsort(-rows, axis=1)[:, :TOP] for rows in (theirs, ours))
    overlap = [len(set(a) & set(b)) / len(a) for a, b in zip(best, found, strict=True)]
    first = theirs.argmax(axis=1) == ours.argmax(axis=1)
    return Distances(tuple(np.maximum(divergences, 0)), tuple(first.tolist()), tuple(overlap))


def _coarse(theirs: Floats, actual: Sequence[int], scores: PromptScores) -> Distances:
    """Compare three outcomes at every position but the last."""
    divergences, first = [], []
    for row, token, ours, top, top_ours in zip(
        theirs, actual, scores.log_probs, scores.top_ids, scores.top_log_probs, strict=False
    ):
        kept = dict.fromkeys((token, top))
        p = [float(np.exp(row[i])) for i in kept]
        q = [float(np.exp(ours if i == token else top_ours)) for i in kept]
        pairs = zip((*p, 1 - sum(p)), (*q, 1 - sum(q)), strict=True)
        divergences.append(sum(_term(a, b) for a, b in pairs))
        first.append(int(row.argmax()) == top)
    return Distances(tuple(max(0.0, d) for d in divergences), tuple(first), ())


def _term(p: float, q: float) -> float:
    return 0.0 if p <= LEAST else p * float(np.log(p / max(q, LEAST)))


def _figures(found: Distances) -> dict[str, Figure]:
    values = {
        "kl_mean": float(np.mean(found.divergences)),
        "kl_p99": percentile(found.divergences, 0.99),
        "top1_agreement": sum(found.first) / len(found.first),
    }
    if found.overlap:
        values["top10_agreement"] = sum(found.overlap) / len(found.overlap)
    count = len(found.divergences)
    return {name: Figure(v, v, v, count) for name, v in values.items()}


def _row(found: EngineReadings, distances: Distances) -> list[str]:
    values = {name: f.median for name, f in _figures(distances).items()}
    top = f"{values['top10_agreement']:.4f}" if "top10_agreement" in values else "-"
    exact = "exact" if found.exact else "a lower bound: three outcomes at each position"
    return [
        " and ".join(found.arms), str(len(distances.divergences)), f"{values['kl_mean']:.2e}",
        f"{values['kl_p99']:.2e}", f"{values['top1_agreement']:.4f}", top, exact,
    ]  # fmt: skip


SCENARIO = Scenario(
    "accuracy",
    "Distributions of the engine compared with the reference's, token by token.",
    grade,
    why_omitted=why_omitted,
    measure=measure,
)
