r"""Triton's own vllm backend, called as users call it: SmolLM2 in float32, with speculation.

Not part of scripts/test. SPECPIPE_VLLM names an environment with vLLM for CPUs (Python 3.11), and
SPECPIPE_VLLM_BACKEND the folder `src` of a clone of triton-inference-server/vllm_backend:

    SPECPIPE_VLLM=.venv-vllm SPECPIPE_VLLM_BACKEND=vllm_backend/src \
        pytest -m vllm tests/e2e/test_vllm_triton.py

The server is that of nvidia-pytriton, so upstream's model runs on Triton's Python backend. It was
written for an older vLLM, and its stub for numpy 1; `EDITS` and `overlay` are the difference.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specpipe.repository.render import parse, to_text
from specpipe.serve import tritonserver
from specpipe.serve.address import Address, free_address
from specpipe.serve.client import Client, Options
from specpipe.serve.front_server import ENVIRONMENT
from tests.helpers.built_runs import built_run
from tests.helpers.fronts import fronting_repository

VLLM, BACKEND = os.environ.get(ENVIRONMENT), os.environ.get("SPECPIPE_VLLM_BACKEND")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        VLLM is None or BACKEND is None,
        reason=f"{ENVIRONMENT} or SPECPIPE_VLLM_BACKEND is not set",
    ),
]
MODELS = Path("~/.cache/specpipe/models").expanduser()
TARGET = MODELS / "SmolLM2-135M-Instruct"
HEADS = Path(__file__).parents[2] / "model_configs/heads/smollm2-135m"
SPECULATION: dict[str, dict[str, Any]] = {
    "prompt_lookup": {"num_draft_tokens": 3},
    "medusa": {"heads": str(HEADS), "num_draft_tokens": 3},
}
EDITS = {  # file: pairs of what it says, and what vLLM 0.32 and an isolated stub need
    "model.py": [
        ("import asyncio\n",
         'import asyncio\nimport locale\n\nlocale.setlocale(locale.LC_CTYPE, "C.UTF-8")\n')
    ],
    "utils/metrics.py": [
        ("import StatLoggerBase, build_1_2_5_buckets",
         "import StatLoggerBase\nfrom vllm.v1.metrics.buckets import build_1_2_5_buckets")
    ],
    "utils/request.py": [("from vllm.inputs.data import", "from vllm.inputs import")],
}  # fmt: skip
PROMPTS = [
    "The capital of France is",
    "Count: one two three one two three one two three one",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n",
]
NEW = 32  # tokens an answer


@dataclass(frozen=True)
class Served:
    """A server, its repository as `build` wrote it, the method and the output of the server."""

    url: str
    repository: Path
    method: str
    log: Path


def overlay(folder: Path) -> Path:
    """Return an environment that is vLLM's with numpy 1, which the server's stub is built for."""
    site = subprocess.run(
        [Path(str(VLLM)) / "bin/python", "-c",
         "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert version in site, f"vLLM is in {site}, and the server's stub runs {version}"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", "--quiet", "numpy==1.26.4"], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "vllm.pth").write_text(site + "\n")
    return folder


def with_upstreams_model(repository: Path, copy: Path) -> Path:
    """Copy a repository, with upstream's model as a model of Triton's Python backend."""
    shutil.copytree(repository, copy)
    version = copy / "vllm_model/1"
    shutil.copytree(Path(str(BACKEND)), version, dirs_exist_ok=True)
    for name, pairs in EDITS.items():
        text = (version / name).read_text()
        for old, new in pairs:
            assert text.count(old) == 1, f"{name} of this clone is another than the edits are for"
            text = text.replace(old, new)
        (version / name).write_text(text)
    file = copy / "vllm_model/config.pbtxt"
    config = parse(file.read_text())
    config.backend = "python"
    config.instance_group[0].kind = config.instance_group[0].KIND_CPU
    file.write_text(to_text(config))
    return copy


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return overlay(tmp_path_factory.mktemp("overlay") / "venv")


@pytest.fixture(scope="module", params=SPECULATION)
def served(
    request: pytest.FixtureRequest, environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    method, root = str(request.param), tmp_path_factory.mktemp("triton")
    repository = built(method, root)
    copy = with_upstreams_model(repository, root / "copy")
    address, log = free_address(), root / "server.log"
    with log.open("wb") as out:
        process = started(copy, address, environment, out)
        running = tritonserver.RunningServer(address, process, log)
        try:
            tritonserver.await_ready(
                running, lambda: tritonserver.is_ready(address), 600, lambda: False
            )
            yield Served(address.grpc, repository, method, log)
        finally:
            tritonserver.stop(process, signal.SIGINT, 30)


def built(method: str, root: Path) -> Path:
    """Build a run of the method; return its repository."""
    values = {
        "name": "vllm", "target": {"model": str(TARGET)},
        "engine": {"backend": "vllm", "dtype": "float32", "max_input_len": 128,
                   "max_seq_len": 256, "max_batch_size": 4},
        "speculation": {"method": method, **SPECULATION[method]},
        "serving": {"front": "triton"},
    }  # fmt: skip
    return built_run(values, root)[1].repository


def started(
    repository: Path, address: Address, environment: Path, out: IO[bytes]
) -> "subprocess.Popen[bytes]":
    """Start a server whose models run in `environment`; it completes their configs."""
    home = tritonserver.server_home(repository.parent / "home")
    argv = [
        str(home.binary), f"--model-repository={repository}", f"--cache-directory={home.caches}",
        f"--backend-directory={home.backends}", *address.flags(), "--exit-timeout-secs=10",
    ]  # fmt: skip
    own = dict(tritonserver.environment(home, environment / "bin"))
    own |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(argv, env={**os.environ, **own}, stdin=subprocess.DEVNULL,
                            stdout=out, stderr=out, start_new_session=True)  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """The answers of transformers."""
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = AutoModelForCausalLM.from_pretrained(TARGET, dtype=torch.float32).eval()
    answers = {}
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        whole = model.generate(ids, max_new_tokens=NEW, do_sample=False)
        answers[prompt] = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    return answers


def test_answers_are_those_of_transformers(served: Served, reference: dict[str, str]) -> None:
    with Client(served.url) as client:
        for prompt, expected in reference.items():
            answer = client.generate(prompt, Options(max_tokens=NEW))
            assert answer.text == expected


def test_the_engine_speculates(served: Served) -> None:
    """The backend reports no draft tokens, but the engine logs its config."""
    name = {"prompt_lookup": "ngram"}.get(served.method, served.method)
    assert f"SpeculativeConfig(method='{name}'" in served.log.read_text(errors="replace")


def test_a_stream_has_the_same_text_counts_and_an_end(
    served: Served, reference: dict[str, str]
) -> None:
    prompt = PROMPTS[1]
    with Client(served.url) as client:
        pieces = list(client.stream(prompt, Options(max_tokens=NEW)))
        assert "".join(piece.text for piece in pieces) == reference[prompt]
        assert pieces[-1].output_tokens == NEW and pieces[-1].finish_reason == "length"
        whole = client.generate(prompt, Options(max_tokens=NEW, stop_words=(" three",)))
        assert reference[prompt].startswith(whole.text) and " three" not in whole.text


def test_chats_through_the_front_are_rendered_with_the_models_template(served: Served) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    with Client(served.url) as client:
        expected = client.generate(str(prompt), Options(max_tokens=12)).text
    with (
        fronting_repository(served.url, served.repository) as address,
        openai.OpenAI(base_url=address.url, api_key="any", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(
            model="tiny", max_completion_tokens=12, temperature=0, messages=messages
        )
    assert answer.choices[0].message.content == expected
    assert "Paris" in expected
