"""Inspects a folder: its kind, its contents, and its defects."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from specpipe.checkpoint.inspection.config import (
    Json,
    check_config,
    describe_model,
    describe_ranks,
    describe_speculation,
    remark_config,
    table,
    text,
)
from specpipe.checkpoint.inspection.eagle3 import inspect_eagle3, is_eagle3
from specpipe.checkpoint.inspection.engine import check_engine, describe_limits, engine_files, mode
from specpipe.checkpoint.inspection.headers import Header, read_headers
from specpipe.checkpoint.inspection.quantization import check_algorithms
from specpipe.checkpoint.inspection.records import File, Inspection, InspectionFinding, Ranks
from specpipe.checkpoint.inspection.tensors import Expected, compare, read_layout, unknown_drafter
from specpipe.checkpoint.inspection.types import check_types
from specpipe.checkpoint.inspection.values import check_copies, check_values
from specpipe.checkpoint.plain_files import read_json
from specpipe.core.artifacts import ARITHMETIC, MANIFEST, describe_damage, read_artifact
from specpipe.core.errors import ConfigError, Unsupported

Progress = Callable[[int, int], None]  # bytes read, bytes in all
_SWAPPED = "whether mlp.fc and mlp.gate are swapped: their shapes are equal"
_VALUES = "the values of the tensors: run with --tensors"


def inspect_folder(folder: Path, progress: Progress | None = None) -> Inspection:
    """Describe a TensorRT-LLM checkpoint or engine, an engine of specpipe's, or a drafter.

    Reads only headers; with `progress` every value as well. Raises ConfigError if the folder is
    none of these; what is wrong with one that is, are its defects.
    """
    if not folder.is_dir():
        if not folder.exists():
            raise ConfigError(f"{folder}: no such folder")
        raise ConfigError(f"{folder} is a file", hint=f"give its folder, {folder.parent}")
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder}: neither a checkpoint nor an engine: it has no config.json",
            hint=_near(folder),
        )
    raw = read_json(folder / "config.json")
    if (folder / ARITHMETIC).is_file():
        raw = {**raw, "arithmetic": read_json(folder / ARITHMETIC)}
    if "pretrained_config" in raw or "build_config" in raw:
        return _inspect_engine(folder, raw)
    if (folder / "engine.json").is_file():
        return _inspect_openvino(folder, raw)
    if is_eagle3(folder, raw):
        return inspect_eagle3(folder)
    if "architecture" not in raw and "architectures" in raw:
        raise ConfigError(
            f"{folder}: a Hugging Face model, not a TensorRT-LLM checkpoint",
            hint="`specpipe convert` makes one of it",
        )
    return _inspect_checkpoint(folder, raw, progress)


def _near(folder: Path) -> str | None:
    """Return a hint at folders below that are what was meant."""
    below = sorted(
        p.parent for p in [*folder.glob("*/config.json"), *folder.glob("*/*/config.json")]
    )
    return f"did you mean {' or '.join(map(str, below[:3]))}?" if below else None


def _inspect_checkpoint(folder: Path, raw: Json, progress: Progress | None) -> Inspection:
    found, remarks = list(_check_facts(raw)), list(remark_config(raw))
    ranks, unchecked = describe_ranks(raw), [_SWAPPED]
    files: list[File] = []
    if ranks is not None:
        files, headers, broken = read_headers(folder, ranks)
        expected, wrong, unknown = _compare(raw, ranks, headers)
        found += [*broken, *wrong, *check_copies(folder, headers, expected)]
        unchecked += unknown
        if progress is None:
            unchecked.append(_VALUES)
        else:
            more, seen = check_values(folder, headers, expected, ranks.tp_size, progress)
            found, remarks = [*found, *more], [*remarks, *seen]
    return Inspection(
        str(folder),
        "TensorRT-LLM checkpoint",
        text(raw, "version"),
        describe_model(raw),
        describe_speculation(raw),
        ranks,
        None,
        tuple(files),
        (*dict.fromkeys(found), *_against_manifest(folder)),
        tuple(remarks),
        tuple(unchecked),
    )


def _check_facts(raw: Json) -> Iterator[InspectionFinding]:
    """Yield everything that is wrong with the facts of a model, types first."""
    yield from check_types(raw)
    yield from check_config(raw)
    yield from check_algorithms(raw)


def _compare(
    raw: Json, ranks: Ranks, headers: Mapping[int, Header]
) -> tuple[Mapping[int, Mapping[str, Expected]], list[InspectionFinding], list[str]]:
    """Return what every rank must hold, what is wrong with it, and why that cannot be told."""
    try:
        layout = read_layout(raw, ranks, headers)
    except Unsupported as error:
        return {}, [], [str(error)]
    if wrong := layout.indivisible():
        return {}, wrong, []
    expected = {rank: layout.of_rank(rank) for rank in headers}
    found = [
        finding
        for rank, header in headers.items()
        for finding in compare(rank, header, expected[rank], raw)
    ]
    drafters = {unknown_drafter(raw, wanted) for wanted in expected.values()} - {None}
    return expected, found, [f"shapes of the drafter's tensors ({name}*)" for name in drafters]


def _inspect_engine(folder: Path, raw: Json) -> Inspection:
    pretrained, build = table(raw, "pretrained_config"), table(raw, "build_config")
    speculation = describe_speculation(
        {**pretrained, "max_draft_len": build.get("max_draft_len")}, mode(build)
    )
    found = [*_check_facts(pretrained), *check_engine(raw, speculation)]
    ranks: Ranks | None = describe_ranks(pretrained)
    files: list[File] = []
    if ranks is not None:
        files, broken = engine_files(folder, ranks)
        found += broken
    version = text(raw, "version")
    if version is None:
        found.append(
            InspectionFinding("config.json names no version of TensorRT-LLM", "build it again")
        )
    return Inspection(
        str(folder),
        "TensorRT-LLM engine",
        version,
        describe_model(pretrained),
        speculation,
        ranks,
        describe_limits(build),
        tuple(files),
        (*found, *_against_manifest(folder)),
        (f"served only by TensorRT-LLM {version}, on the kind of GPU it was built on",)
        if version
        else (),
        ("the plans in rankN.engine: only TensorRT can read them",),
    )


def _inspect_openvino(folder: Path, raw: Json) -> Inspection:
    built = read_json(folder / "engine.json")
    graphs = sorted(folder.glob("*.xml"))
    found = list(_check_facts(raw))
    if not graphs:
        found.append(
            InspectionFinding("the engine has no graph (*.xml)", "run `specpipe compile` again")
        )
    found += [
        InspectionFinding(
            f"{graph.with_suffix('.bin').name} is missing", "run `specpipe compile` again"
        )
        for graph in graphs
        if not graph.with_suffix(".bin").is_file()
    ]
    weights = tuple(File(p.name, p.stat().st_size) for p in sorted(folder.glob("*.bin")))
    return Inspection(
        str(folder),
        "OpenVINO engine",
        None,
        describe_model(
            {
                **raw,
                "dtype": built.get("dtype"),
                "quantization": {"quant_algo": built.get("quantization")},
            }
        ),
        describe_speculation(raw, "driven by specpipe"),
        Ranks(1, 1, 1),
        describe_limits(built),
        weights,
        (*found, *_against_manifest(folder)),
        (),
        ("the graphs: `specpipe serve` or `validate` run them",),
    )


def _against_manifest(folder: Path) -> list[InspectionFinding]:
    """Compare the files with the manifest, if we wrote one."""
    if not (folder / MANIFEST).is_file():
        return []
    artifact, again = read_artifact(folder), "build it again"
    if artifact is None:
        return [InspectionFinding(f"{MANIFEST} is damaged", again)]
    return [
        InspectionFinding(f"{sentence}, according to {MANIFEST}", again)
        for sentence in describe_damage(artifact)
    ]
