"""scripts/gpu-acceptance without a GPU: it continues after failures and reports them."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

SCRIPT = "scripts/gpu-acceptance"


def accept(tmp_path: Path, steps: str, *configs: Path) -> tuple[int, list[dict]]:
    command = [sys.executable, SCRIPT, "--report", str(tmp_path / "report"), "--steps", steps,
               "--workspace", str(tmp_path / "work"), *map(str, configs)]  # fmt: skip
    done = subprocess.run(command, stderr=subprocess.DEVNULL, env=os.environ, check=False)
    return done.returncode, json.loads((tmp_path / "report/results.json").read_text())


def test_a_config_that_fails_does_not_stop_the_others(
    write_config, gpu_machine: Path, tmp_path: Path
) -> None:
    engine = {"backend": "tensorrt", "gpu": "H100-SXM", "dtype": "bfloat16", "max_batch_size": 2,
              "max_input_len": 100, "max_seq_len": 200}  # fmt: skip
    configs = []
    for name, changes in (("wrong-gpu", {"gpu": "L4"}), ("good", {})):
        path = write_config(name=name, engine={**engine, **changes})
        configs.append(path.rename(tmp_path / f"{name}.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: broken\nnonsense: 1\n")
    code, results = accept(tmp_path, "build,serve,validate,bench", *configs, broken)
    assert code == 4
    wrong, good, unread = ([(s["step"], s["state"]) for s in r["steps"]] for r in results)
    assert wrong == [("build", "failed"), ("serve", "skipped"), ("validate", "skipped"),
                     ("bench", "skipped")]  # fmt: skip
    assert "engine.gpu is L4" in results[0]["steps"][0]["note"]
    assert good[0] == ("build", "ok") and good[1][0] == "serve"
    assert unread == [("config", "failed")]
    assert "unknown key 'nonsense'" in results[2]["steps"][0]["note"]
    with tarfile.open(tmp_path / "report.tar.gz") as tar:
        names = set(tar.getnames())
    assert {"report/summary.md", "report/good/build.txt", "report/nvidia-smi.txt",
            "report/good/artifacts/engines/good/target/specpipe.json",
            "report/good/artifacts/engines/good/target.build.log"} <= names  # fmt: skip
    assert not any(name.endswith((".engine", ".safetensors")) for name in names)
