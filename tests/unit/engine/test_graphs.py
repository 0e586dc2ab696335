"""The graphs of the CPU engine: when they change, FORMAT has to change.

Otherwise engines of an earlier commit would count as up to date. `UPDATE_GOLDEN=1` writes the
golden file, after FORMAT was changed.
"""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import openvino as ov
import pytest

from specpipe.engine.openvino import backend
from specpipe.engine.openvino.backend import FORMAT
from specpipe.engine.openvino.saving import save_graph
from tests.helpers.eagle3 import make_eagle3
from tests.helpers.models import make_heads, make_redrafter

GOLDEN = Path(__file__).parents[2] / "golden/graphs.json"
PRECISIONS = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "batch_invariant": {"dtype": "bfloat16", "quantization": "int8", "batch_invariant": True},
}
DRAFTERS = {"heads": make_heads, "redrafter": make_redrafter, "eagle3": make_eagle3}


def summary(network: ov.Model) -> str:
    """Return how many operations there are, and a digest of them and of what connects them."""
    places, lines = dict[str, int](), list[str]()
    for place, node in enumerate(network.get_ordered_ops()):
        kind, places[node.get_friendly_name()] = node.get_type_name(), place
        inputs = [places[port.get_node().get_friendly_name()] for port in node.input_values()]
        outputs = [(port.get_element_type(), port.partial_shape) for port in node.outputs()]
        attributes = {} if kind == "Constant" else node.get_attributes()
        lines.append(f"{kind} {inputs} {outputs} {sorted(attributes.items())}")
    counts = Counter(line.split()[0] for line in lines)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return f"{len(lines)} operations of {len(counts)} kinds, {digest}"


def test_changed_graphs_have_another_format(
    tiny: Path, make_engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = dict[str, str]()

    def build(kind: str, **values: object) -> None:
        def save(network: ov.Model, file: Path) -> None:
            graphs[f"{kind} {file.stem}"] = summary(network)
            save_graph(network, file)

        monkeypatch.setattr(backend, "save_graph", save)
        make_engine(tiny, **values)

    monkeypatch.setattr(backend, "load_engine", lambda folder: None)  # which takes long
    for kind, values in PRECISIONS.items():
        build(kind, **values)
    for kind, make in DRAFTERS.items():
        make(tmp_path / kind, seed=1)
        build(kind, **{kind: tmp_path / kind})
    known = json.loads(GOLDEN.read_text())
    if graphs != known["graphs"]:
        assert known["format"] != FORMAT, "the graphs differ: increase FORMAT of backend.py"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"format": FORMAT, "graphs": graphs}, indent=2) + "\n")
    assert json.loads(GOLDEN.read_text()) == {"format": FORMAT, "graphs": graphs}
