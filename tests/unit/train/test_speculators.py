"""The package speculators, in an environment of its own, loads a drafter that specpipe writes."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from specpipe.config.training import Eagle3Training
from specpipe.train.eagle3 import drafter_config, write_drafter
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.target import Target

PYTHON = "SPECULATORS_PYTHON"
JUDGE = """
import sys, torch
from safetensors.torch import load_file
from speculators import SpeculatorModel, SpeculatorModelConfig

folder = sys.argv[1]
config = SpeculatorModelConfig.from_pretrained(folder)
assert config.draft_vocab_size == 100 and config.eagle_aux_hidden_state_layer_ids == [0, 1]
assert config.norm_before_residual is True
ours, theirs = load_file(folder + "/model.safetensors"), SpeculatorModel.from_pretrained(folder)
theirs = theirs.state_dict()
assert not ours.keys() - theirs.keys(), ours.keys() - theirs.keys()
own = {name for name in theirs if not name.startswith(("verifier_", "embed_tokens"))}
assert not own - ours.keys(), own - ours.keys()
assert all(torch.equal(theirs[name].to(t.dtype), t) for name, t in ours.items())
"""


@pytest.mark.speculators
@pytest.mark.skipif(PYTHON not in os.environ, reason=f"{PYTHON} names no Python")
def test_speculators_loads_every_tensor_under_its_name(target: Target, tmp_path: Path) -> None:
    options = Eagle3Training(norm_before_residual=True)
    config = drafter_config(options, target, str(target.path), [0, 1], 100)
    ids = torch.arange(100) * 3
    net = Eagle3Net(config, target.embedding, target.output[ids], None, seed=1)
    folder = tmp_path / "drafter"
    folder.mkdir()
    write_drafter(net, config, ids, target, folder)
    command = [os.environ[PYTHON], "-c", JUDGE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
