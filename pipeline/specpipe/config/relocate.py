"""Rewrites the relative paths in the text of a config for another folder."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig
from specpipe.config.yaml_nodes import compose

# The keys whose values are files or folders of this machine; of lists every item.
FILE_KEYS = frozenset({
    "target.model", "speculation.draft.model", "speculation.draft.heads", "speculation.heads",
    "speculation.drafter", "speculation.redrafter.drafter", "speculation.redrafter.heads",
    "speculation.eagle3.model",
    "serving.tls.certificate", "serving.tls.key", "serving.tls.client_ca",
    "validate.prompts", "validate.datasets", "validate.tasks.include",
    "train.files", "train.self_distillation.prompts",
})  # fmt: skip
_BARE = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")  # needs no quotes in YAML


def relocated(text: str, config: RunConfig, folder: Path) -> tuple[str, Mapping[str, str]]:
    """Return the YAML text of `config` for a file in `folder`, and each changed path, old to new.

    A relative path of an existing file becomes relative to `folder`, so it works from every
    working directory. Absolute paths, variables and names of models elsewhere stay.
    """
    found: dict[str, str] = {}
    spans: dict[tuple[int, int], str] = {}
    for key, node in _scalars(compose(text, Path(config.path)), ""):
        new = _moved(node.value, config, folder) if key in FILE_KEYS else None
        if new is not None:
            found[node.value] = new
            spans[node.start_mark.index, node.end_mark.index] = new
    for (begin, end), new in sorted(spans.items(), reverse=True):
        text = text[:begin] + (new if _BARE.fullmatch(new) else json.dumps(new)) + text[end:]
    return text, found


def _scalars(node: yaml.Node, key: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item, key)
    else:
        for name, value in node.value:
            yield from _scalars(value, f"{key}.{name.value}".lstrip("."))


def _moved(text: str, config: RunConfig, folder: Path) -> str | None:
    """Return the path from `folder`; None if the text stays as it is."""
    if not text.strip() or text[0] in "~/$":
        return None
    path = find_file(text, config)
    if path is None:
        return None
    for new in (text, os.path.relpath(path, folder.resolve())):
        here = Path(new)  # the working directory comes first where a path is looked for
        shadowed = here.exists() and here.resolve() != path
        if (folder / new).resolve() == path and not shadowed:
            return None if new == text else new
    return str(path)
