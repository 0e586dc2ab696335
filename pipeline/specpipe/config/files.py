"""The files and folders that keys of a run name.

Not here: models on the hub; see `checkpoint.finding`.
"""

import os
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.errors import ConfigError

_RELATIVE = "paths are relative to the working directory or to the config file"


def find_file(text: str, config: RunConfig) -> Path | None:
    """Return the existing file or folder that `text` names, or None."""
    named = os.path.expandvars(text)
    if not named.strip():
        return None
    try:
        expanded = Path(named).expanduser()
        for candidate in (expanded, Path(config.path).parent / expanded):
            if candidate.exists():
                return candidate.resolve()
    except (OSError, RuntimeError):  # longer than a name may be; in a closed folder; ~nobody
        return None
    return None


def require_file(text: str, config: RunConfig, key: str, *, hint: str = _RELATIVE) -> Path:
    """Return the existing file or folder that `text` names.

    Raises ConfigError if there is none.
    """
    found = find_file(text, config)
    if found is None:
        raise ConfigError(
            f"{config.places.get(key, config.path)}: '{key}' is {text!r}: no such file or folder",
            hint=hint,
        )
    return found


def find_tls(config: RunConfig) -> tuple[Path, Path, Path | None] | None:
    """Return the files of `serving.tls`: certificate, key, the clients' authority; None without.

    Raises ConfigError if one is not there.
    """
    tls = config.serving.tls
    if tls is None:
        return None
    return (
        require_file(tls.certificate, config, "serving.tls.certificate"),
        require_file(tls.key, config, "serving.tls.key"),
        require_file(tls.client_ca, config, "serving.tls.client_ca") if tls.client_ca else None,
    )
