"""A search measures every setting once, the best ones again, and continues where it was ended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from specpipe.bench.choices import (
    Ledger,
    RunAtLoad,
    Search,
    SearchExtent,
    Timing,
    best_keys,
    deadline,
    key_of,
    settings_of,
    strided,
    time_settings,
)
from specpipe.bench.choices_table import choices_table, methods_table
from specpipe.cli.present import settings_text
from specpipe.config.method_parts import Eagle3Draft, ReDrafterOptions
from specpipe.config.speculation import (
    PLAIN,
    Eagle3,
    Hybrid,
    Medusa,
    PromptLookup,
    Speculation,
)
from specpipe.serve.client import Generation, Options
from tests.helpers.served_model import ServedModel

GRID = [PromptLookup("prompt_lookup", tokens) for tokens in (2, 3, 4, 6, 8)]
ONE, FOUR = RunAtLoad("mine", 1), RunAtLoad("mine", 4)
EXTENT = SearchExtent(rounds=2)


@dataclass
class ChattyModel(ServedModel):
    """A served model whose client knows chat templates, and which counts its requests."""

    sent: list[int | None] = field(default_factory=list)

    def stream(  # type: ignore[override]
        self, prompt: str, options: Options, *, chat: bool = False
    ) -> Iterator[object]:
        self.sent.append(options.num_draft_tokens)
        return super().stream(prompt, options)

    def collect(self, pieces: Iterator[object]) -> Generation:  # type: ignore[override]
        return super().collect(pieces)  # type: ignore[arg-type]


@dataclass
class Servers:
    """Serves settings; the session is over after a number of starts."""

    most: int = 1000
    started: list[Speculation] = field(default_factory=list)

    @contextmanager
    def serve(self, options: Speculation) -> Iterator[ChattyModel]:
        self.started.append(options)
        yield ChattyModel()

    def is_over(self) -> bool:
        return len(self.started) >= self.most


def search(tmp_path: Path, servers: Servers, extent: SearchExtent = EXTENT) -> Search:
    ledger = Ledger(tmp_path / "deep/ledger.jsonl")
    prompts = ("one two three", "the quick brown fox")
    return Search(
        "mine", prompts, extent, ledger, servers.serve, servers.is_over  # type: ignore[arg-type]
    )  # fmt: skip


def test_an_interrupted_search_continues_with_what_is_missing(tmp_path: Path) -> None:
    first, second = Servers(most=2), Servers()
    assert not search(tmp_path, first).measure_grid(GRID, (1, 4))
    with (tmp_path / "deep/ledger.jsonl").open("a") as file:
        file.write('{"kind": "grid", "run": "mi')  # a session that was killed
        file.write("\n")
    found = search(tmp_path, second)
    assert found.measure_grid(GRID, (1, 4))
    assert [*first.started, *second.started] == GRID
    for subject in (ONE, FOUR):
        timings = found.ledger.timings("grid", subject)
        assert {key: len(values) for key, values in timings.items()} == {
            key_of(options): 1 for options in GRID
        }
    third = Servers()
    assert search(tmp_path, third).measure_grid(GRID, (1, 4)) and not third.started


def test_settings_are_served_again_in_turn(tmp_path: Path) -> None:
    servers = Servers()
    keys = [key_of(options) for options in GRID[:2]]
    assert search(tmp_path, servers).measure_again("final", keys, ONE)
    assert servers.started == [*GRID[:2], *GRID[:2]]


def test_both_arms_take_turns_in_being_first() -> None:
    model = ChattyModel()
    found = time_settings(model, ["a", "b"], 1, SearchExtent(passes=2))  # type: ignore[arg-type]
    arms = ["plain" if sent == 0 else "fast" for sent in model.sent]
    assert arms == ["fast", "plain"] + ["plain"] * 2 + ["fast"] * 4 + ["plain"] * 2
    assert found.ms > 0 and found.plain_ms > 0


def test_every_stream_has_four_answers_although_there_are_fewer_prompts() -> None:
    model = ChattyModel()
    time_settings(model, ["a", "b"], 4, SearchExtent(passes=1))  # type: ignore[arg-type]
    assert len(model.sent) == 2 + 2 * 16


@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        PromptLookup("prompt_lookup", 3, tree="dynamic"),
        Medusa("medusa", "heads", 2, ((0,), (0, 1))),
        Hybrid("hybrid", redrafter=ReDrafterOptions("heads", 2, 3)),
        Eagle3("eagle3", Eagle3Draft("drafter"), tree="dynamic"),
    ],
    ids=lambda options: options.method,
)
def test_settings_are_read_from_their_key(options: Speculation) -> None:
    assert settings_of(key_of(options)) == options


def test_early_settings_cover_the_whole_grid() -> None:
    grid = [PromptLookup("prompt_lookup", n) for n in range(1, 33)]
    order = [options.num_draft_tokens for options in strided(grid, 1)]
    assert sorted(order) == list(range(1, 33)) and order[:4] == [1, 9, 17, 25]
    assert [options.num_draft_tokens for options in strided(grid, 16)] == [1, 17]


def test_a_session_ends_after_its_minutes() -> None:
    seconds = iter([0.0, 719.0, 720.0])
    is_over = deadline(12, lambda: next(seconds))
    assert [is_over(), is_over()] == [False, True]


def note_all(ledger: Ledger, kind: str, speeds: Sequence[tuple[Speculation, Sequence[float]]]):
    for options, found in speeds:
        for speed in found:
            ledger.note(kind, ONE, key_of(options), Timing(10.0, 10.0 * speed))


def test_the_table_compares_the_choice_with_the_best_of_the_last_rounds(tmp_path: Path) -> None:
    """The best of the grid was lucky: served again, another one is the fastest."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    choice, lucky, fast = GRID[:3]
    note_all(ledger, "grid", [(choice, [1.2]), (lucky, [1.9]), (fast, [1.5]), (GRID[3], [0.7])])
    assert best_keys(ledger, ONE) == [key_of(options) for options in (lucky, fast, choice)]
    values = {"settings": key_of(choice), "predicted": 1.31, "settings_of_grid": 5}
    ledger.write(kind="choice", run="mine", streams=1, **values)
    note_all(ledger, "final", [(choice, [1.1, 1.2, 1.3]), (lucky, [1.0]), (fast, [1.24, 1.25])])
    (line,) = choices_table(ledger, [ONE, FOUR], settings_text).split("\n")[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["mine", "1", "4 of 5"] and cells[4] == "1.31"
    assert cells[3] == settings_text(choice) and cells[5] == "1.20 [1.10, 1.30]"
    assert cells[6] == settings_text(fast) and cells[8] == "0.96"  # 1.2 / 1.245


def test_plain_decoding_is_the_fastest_where_nothing_is_faster(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    values = {"settings": key_of(PLAIN), "predicted": 1.0, "settings_of_grid": 5}
    ledger.write(kind="choice", run="mine", streams=1, **values)
    note_all(ledger, "final", [(GRID[0], [0.9]), (GRID[1], [0.8])])
    (line,) = choices_table(ledger, [ONE], settings_text).split("\n")[2:]
    assert line.endswith("| none | 1.00 | 1 | none | 1 | 1.00 |")


def test_methods_are_listed_by_their_measured_speed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    heads = Medusa("medusa", "heads", 4, "dynamic")
    for place, (options, predicted) in enumerate([(GRID[0], 1.3), (PLAIN, 1.0), (heads, 0.9)]):
        ledger.write(
            kind="recommendation", run="mine", streams=1, settings=key_of(options), place=place,
            predicted=predicted,
        )  # fmt: skip
    note_all(ledger, "method", [(heads, [1.4]), (GRID[0], [1.2])])
    lines = methods_table(ledger, [ONE], settings_text).split("\n")[2:]
    assert [line.split(" | ")[2].split(" ")[0] for line in lines] == [
        "medusa", "prompt_lookup", "none",
    ]  # fmt: skip
    assert lines[1].endswith("| yes |") and lines[0].endswith("|  |")
