"""The arithmetic of `scripts/compare-judges`, whose judges need the real model and vLLM."""

from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend("scripts")
    import judges

    return judges


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend("scripts")
    import vllm_runs

    return vllm_runs


def test_a_step_of_vllm_begins_after_all_that_was_accepted_before_it(judges: ModuleType) -> None:
    steps = list(judges.vllm_steps({"per_step_accepted": [2, 0, 1]}))
    assert [(step.begin, step.accepted) for step in steps] == [(1, 2), (4, 0), (5, 1)]


def test_steps_whose_chain_reaches_past_the_answer_are_left_out(judges: ModuleType) -> None:
    steps = tuple(judges.ChainStep(begin, 1) for begin in (1, 3, 5))
    judged = judges.Judged((tuple(range(6)),), (steps,))
    assert [step.begin for step in judges.whole_steps(judged, depth=2)] == [1, 3]


def test_acceptance_by_depth_counts_every_step(judges: ModuleType) -> None:
    assert judges.by_depth([0, 1, 3, 3], 3) == [0.75, 0.5, 0.5]


def test_the_walk_takes_the_positions_that_a_chain_would_take(judges: ModuleType) -> None:
    """Position t drafts from token t + 2 on; the first token of the answer needs no draft."""
    right = np.zeros((8, 2), bool)
    right[2] = [True, True]  # prompt of 3: drafts tokens 4 and 5, which are output tokens 1 and 2
    right[5] = [True, False]
    steps = list(judges.walk(right, 3, answer=(7, 7, 7, 7, 7)))
    assert [(step.begin, step.accepted) for step in steps] == [(1, 2), (4, 1)]


def test_the_trainers_definition_counts_positions_with_a_text_that_long(
    judges: ModuleType,
) -> None:
    (document,) = judges.documents_of([[1, 2]], [[3, 4, 5, 6]])
    right = np.ones((6, 2), bool)
    right[2] = [True, False]
    hits, positions = judges.every_position(right, document)
    assert positions.tolist() == [3, 2]  # after 2, 3 and 4; the last has no second token
    assert hits.tolist() == [3, 1]


def test_a_server_reports_the_steps_of_every_answer(runs: ModuleType) -> None:
    argv = ("vllm", "serve", "--per-request-spec-decode-metrics", "summary", "--enforce-eager")
    changed = runs.with_metrics(argv, "detailed")
    assert changed == (*argv[:3], "detailed", "--enforce-eager")
    assert runs.with_metrics(("vllm", "serve"), "detailed") == ("vllm", "serve")
