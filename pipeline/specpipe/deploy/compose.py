"""The parts of a compose file's services that every kind of server has.

Not here: the services; each kind of server has its own module.
"""

from typing import Any

Yaml = dict[str, Any]


def health_check(url: str, startup_s: int) -> Yaml:
    """Return a check that reads `url` inside the container, past any proxy of the environment."""
    probe = (
        "from urllib.request import ProxyHandler, build_opener; "
        f"build_opener(ProxyHandler({{}})).open('{url}', timeout=4)"
    )
    return {
        "test": ["CMD", "python3", "-c", probe],
        "interval": "10s",
        "timeout": "5s",
        "retries": 3,
        "start_period": f"{startup_s}s",
    }


def gpu_reservation(count: int) -> Yaml:
    """Return the `deploy` section of a service that has `count` GPUs."""
    gpus = {"driver": "nvidia", "count": count, "capabilities": ["gpu"]}
    return {"resources": {"reservations": {"devices": [gpus]}}}


def read_only_mount(source: str, target: str) -> Yaml:
    """Return a volume of a service: a file or folder of the host that it cannot write to."""
    return {"type": "bind", "source": source, "target": target, "read_only": True}
