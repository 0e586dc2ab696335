"""Upstream's records of the LLM API, as far as they forbid unknown fields: a judge of YAML."""

from typing import Any

from specpipe.engine.llmapi.releases import releases

SUFFIX_FIELDS = {"threshold", "enable_global_pool"}  # of `SAEnhancerConfig`


def unknown_fields(values: dict[str, Any], release: str) -> list[str]:
    """Return what the `LLM` of a release would refuse in its keyword arguments."""
    known = releases()[release]
    found = [name for name in values if name not in known.arguments]
    found += [n for n in values.get("kv_cache_config", {}) if n not in known.cache_fields]
    section = values.get("speculative_config", {})
    kind = section.get("decoding_type")
    records = [r for r in known.methods.values() if r.decoding_type == kind]
    if section and not records:
        return [*found, f"decoding_type {kind}"]
    found += [name for name in section if name not in records[0].fields]
    return found + [n for n in section.get("sa_config", {}) if n not in SUFFIX_FIELDS]
