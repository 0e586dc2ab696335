"""Command lines of `trtllm-build`: known flags only, and upstream's hard rules by construction."""

import itertools
from pathlib import Path

import pytest

from specpipe.core.divisibility import Parallel
from specpipe.core.upstream import ENGINE_MODES
from specpipe.engine.backend import BuildRequest
from specpipe.engine.tensorrt.backend import TensorRtBackend
from specpipe.engine.tensorrt.lower import (
    build_flags,
    engine_seq_len,
    longest_prompt,
    reads_in_chunks,
    takes_drafts,
)
from specpipe.engine.tensorrt.profiles import find_profile
from tests.helpers.trtllm_build import TABLES, known_flags, parse, request

ENGINES = [("none", "target", 0), ("draft_model", "target", 5), ("draft_model", "draft", 5),
           ("medusa", "target", 63), ("lookahead", "target", 83),
           ("redrafter", "target", 25)]  # fmt: skip


def flags_of(asked: BuildRequest, release: str = "1.2.1") -> dict[str, str | bool]:
    profile = find_profile(release)
    assert profile is not None
    return parse(build_flags(asked, Path("in"), Path("out"), profile), release)


def every_request() -> list[BuildRequest]:
    """Return requests over every engine, several sizes, number formats and ranks."""
    sizes = [
        (1, 16, 32),
        (8, 1024, 2048),
        (64, 4096, 8192),
        (2048, 1024, 2048),
        (1, 100000, 131072),
    ]
    formats = [("none", "none"), ("fp8", "fp8"), ("int8", "int8"), ("nvfp4", "fp8"),
               ("int4_awq", "none"), ("int8_sq", "int8"), ("none", "fp8")]  # fmt: skip
    return [
        request(method=m, role=r, draft_nodes=n, max_batch_size=b, max_input_len=i, max_seq_len=s,
                quantization=q, kv_cache_quantization=kv, parallel=Parallel(tp))
        for (m, r, n), (b, i, s), (q, kv), tp in itertools.product(ENGINES, sizes, formats, (1, 4))
    ]  # fmt: skip


@pytest.mark.parametrize("release", TABLES)
def test_every_command_line_is_one_that_its_release_can_read(release: str) -> None:
    profile = find_profile(release)
    assert profile is not None
    for asked in every_request():
        if asked.engine.quantization in profile.quantizations:
            flags_of(asked, release)


def test_the_parser_of_these_tests_refuses_what_upstream_would() -> None:
    for line in (["--no_such_flag", "1"], ["--max_batch_size", "many"], ["--gemm_plugin", "int3"]):
        with pytest.raises(AssertionError):
            parse(["trtllm-build", *line], "1.2.1")
    assert "--auto_parallel" in known_flags("0.18.2")
    assert "--auto_parallel" not in known_flags("1.2.1")


def test_every_method_of_a_profile_has_a_row() -> None:
    for release in TABLES:
        profile = find_profile(release)
        assert profile is not None and set(profile.methods) <= set(ENGINE_MODES)


@pytest.mark.parametrize(
    ("method", "role", "nodes", "mode"),
    [
        ("none", "target", 0, None),
        ("draft_model", "target", 5, "draft_tokens_external"),
        ("draft_model", "draft", 5, None),
        ("medusa", "target", 63, "medusa"),
        ("lookahead", "target", 83, "lookahead_decoding"),
        ("redrafter", "target", 25, "explicit_draft_tokens"),
    ],
)
def test_the_mode_comes_with_its_draft_length_and_only_where_drafts_are_judged(
    method: str, role: str, nodes: int, mode: str | None
) -> None:
    flags = flags_of(request(method=method, role=role, draft_nodes=nodes))
    assert flags.get("--speculative_decoding_mode") == mode
    assert flags.get("--max_draft_len") == (str(nodes) if mode else None)


def test_beams_are_one_and_batches_are_never_left_to_the_default_of_2048() -> None:
    for asked in every_request():
        flags = flags_of(asked)
        assert flags["--max_beam_width"] == "1"
        assert flags["--max_batch_size"] == str(asked.engine.max_batch_size)


def test_upstream_would_leave_the_number_of_tokens_alone() -> None:
    for asked in every_request():
        flags = flags_of(asked)
        tokens, block = int(str(flags["--max_num_tokens"])), int(str(flags["--tokens_per_block"]))
        nodes = asked.draft_nodes if takes_drafts(asked) else 0
        assert tokens >= asked.engine.max_batch_size * (nodes + 1)  # raised to, in `builder.build`
        assert tokens >= min(block, asked.engine.max_batch_size * engine_seq_len(asked))
        assert tokens <= asked.engine.max_batch_size * engine_seq_len(asked)  # check_max_num_tokens
        assert int(str(flags["--opt_num_tokens"])) <= tokens


def test_a_whole_prompt_fits_into_one_step_unless_it_is_read_in_chunks() -> None:
    for asked in every_request():
        tokens, prompt = int(str(flags_of(asked)["--max_num_tokens"])), longest_prompt(asked)
        assert tokens >= prompt or reads_in_chunks(asked)


def test_only_long_prompts_are_read_in_chunks_and_take_no_more_than_a_chunk() -> None:
    """120,000 tokens of a 70B model in one step are 25 GiB of buffers."""
    chunked = [asked for asked in every_request() if reads_in_chunks(asked)]
    assert {asked.method for asked in chunked} == {"none", "draft_model"}
    for asked in chunked:
        flags = flags_of(asked)
        assert flags["--use_paged_context_fmha"] == "enable"  # upstream asserts it
        assert int(str(flags["--max_num_tokens"])) == 8192 < longest_prompt(asked)
        assert 8192 % int(str(flags["--tokens_per_block"])) == 0  # chunks end with blocks


def test_engines_that_are_called_again_and_again_take_prompt_and_answer_as_prompt() -> None:
    for role in ("target", "draft"):
        flags = flags_of(request(method="draft_model", role=role, draft_nodes=4))
        assert flags["--max_input_len"] == flags["--max_seq_len"] == "2048"
    assert flags_of(request())["--max_input_len"] == "1024"


def test_the_target_of_a_draft_model_reads_cached_blocks_and_gathers_no_context_logits() -> None:
    flags = flags_of(request(method="draft_model", draft_nodes=4))
    assert flags["--use_paged_context_fmha"] == "enable" and flags["--kv_cache_type"] == "paged"
    for asked in every_request():
        assert not {"--gather_context_logits", "--gather_all_token_logits"} & set(flags_of(asked))


@pytest.mark.parametrize(
    ("weights", "cache", "paged", "fp8"),
    [
        ("none", "none", "enable", "disable"),
        ("none", "int8", "disable", "disable"),  # upstream: a warning in 1.x, an error in 0.18
        ("none", "fp8", "disable", "disable"),
        ("fp8", "none", "enable", "disable"),
        ("fp8", "fp8", "enable", "enable"),
        ("nvfp4", "fp8", "enable", "enable"),
        ("int4_awq", "fp8", "disable", "disable"),
    ],
)
def test_attention_over_blocks_follows_the_formats_of_weights_and_cache(
    weights: str, cache: str, paged: str, fp8: str
) -> None:
    flags = flags_of(request(quantization=weights, kv_cache_quantization=cache))
    assert (flags["--use_paged_context_fmha"], flags["--use_fp8_context_fmha"]) == (paged, fp8)


@pytest.mark.parametrize(
    ("weights", "plugin"),
    [("none", "bfloat16"), ("int8", "bfloat16"), ("fp8", "disable"), ("nvfp4", "nvfp4")],
)
def test_the_gemm_plugin_follows_the_weights(weights: str, plugin: str) -> None:
    assert flags_of(request(quantization=weights))["--gemm_plugin"] == plugin


def test_ranks_are_built_side_by_side_and_talk_only_if_there_are_several() -> None:
    one, many = flags_of(request()), flags_of(request(parallel=Parallel(2, 2)))
    assert (one["--workers"], one["--nccl_plugin"]) == ("1", "disable")
    assert (many["--workers"], many["--nccl_plugin"]) == ("4", "bfloat16")


def test_what_some_gpus_refuse_is_off() -> None:
    for flag in ("gemm_swiglu", "fp8_rowwise_gemm", "low_latency_gemm", "low_latency_gemm_swiglu"):
        assert flags_of(request())[f"--{flag}_plugin"] == "disable"


def test_block_size_and_gathered_logits_differ_by_release() -> None:
    draft = request(method="draft_model", role="draft", draft_nodes=4)
    old, new = flags_of(draft, "0.18.2"), flags_of(draft, "1.2.1")
    assert (old["--tokens_per_block"], new["--tokens_per_block"]) == ("64", "32")
    assert old.get("--gather_generation_logits") and "--gather_generation_logits" not in new
    target = flags_of(request(method="draft_model", draft_nodes=4), "0.18.2")
    assert "--gather_generation_logits" not in target


def test_the_release_of_the_request_decides() -> None:
    (command,) = TensorRtBackend().commands(request(release="0.18.2"), Path("in"), Path("out"))
    assert parse(command.argv, "0.18.2")["--tokens_per_block"] == "64"
