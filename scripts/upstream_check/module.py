"""The module `tensorrt`: networks that compute, builders that build nothing, registries."""

import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from upstream_check import enums
from upstream_check.enums import SHORT, AnyMeta, DataType
from upstream_check.network import INetworkDefinition, Plugin
from upstream_check.tensors import Dims, ITensor, Layer


class PluginField:
    """A field of a plugin."""

    def __init__(self, name: str, data: Any, type: Any = None) -> None:
        self.name, self.data, self.type = name, data, type


class PluginFieldCollection(list[PluginField]):
    """The fields of a plugin."""


class Creator:
    """Makes plugins of one name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_plugin(self, name: str, fields: Sequence[Any], phase: object = None) -> Plugin:
        """Return a plugin."""
        return Plugin(self.name, fields)


class Registry:
    """Has a creator for every plugin."""

    def get_plugin_creator(self, name: str, version: str = "1", namespace: str = "") -> Creator:
        """Return a creator."""
        return Creator(name)

    get_creator = get_plugin_creator


class Weights:
    """Weights by their address, or as an array."""

    def __init__(self, dtype: Any = None, pointer: Any = None, size: Any = None) -> None:
        if isinstance(dtype, np.ndarray):
            self.array, self.dtype, self.size = dtype, None, dtype.size
        else:
            self.dtype, self.pointer, self.size = dtype, pointer, size


class Logger(metaclass=AnyMeta):
    """Logs nothing."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, *_: object, **__: object) -> None:
        self.min_severity = 0

    def log(self, *_: object) -> None:
        """Forget the message."""


class BuilderConfig:
    """Takes every setting."""

    num_optimization_profiles = 0
    flags = 0

    def set_flag(self, *_: object) -> None:
        """Flags have no effect."""

    def create_timing_cache(self, data: object) -> Any:
        """Return an empty cache."""
        return ITimingCache()

    def set_timing_cache(self, *_: object, **__: object) -> bool:
        """Caches have no effect."""
        return True

    def add_optimization_profile(self, profile: object) -> int:
        """Count a profile."""
        self.num_optimization_profiles += 1
        return self.num_optimization_profiles - 1


class OptimizationProfile:
    """Requires that every range of shapes is one."""

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        """Check a range."""
        ordered = all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))
        assert ordered, f"profile of {name}: {low}, {best}, {high}"

    set_shape_input = set_shape


class Builder:
    """Makes networks and their settings."""

    def __init__(self, *_: object) -> None:
        pass

    def create_network(self, flags: object) -> INetworkDefinition:
        """Return a network."""
        return INetworkDefinition()

    def create_builder_config(self) -> BuilderConfig:
        """Return settings."""
        return BuilderConfig()

    def create_optimization_profile(self) -> OptimizationProfile:
        """Return a profile."""
        return OptimizationProfile()


class ITimingCache:
    """An empty cache."""


class AnyModule(types.ModuleType):
    """A module that has every attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = AnyMeta(name, (), {})
        setattr(self, name, value)
        return value


def _volume(dims: Sequence[int]) -> int:
    return int(np.prod(dims))


def _nptype(dtype: DataType) -> type:
    return {
        DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT32: np.int32,
        DataType.INT64: np.int64, DataType.BOOL: np.bool_, DataType.INT8: np.int8,
    }[dtype]  # fmt: skip


def install(version: str = "10.7.0") -> None:
    """Put the stand-in where `import tensorrt` finds it."""
    module = AnyModule("tensorrt")
    for name, value in vars(enums).items():
        if not name.startswith("_"):
            setattr(module, name, value)
    own = (
        Dims, ITensor, INetworkDefinition, PluginField, PluginFieldCollection, Weights, Logger,
        Builder, ITimingCache,
    )  # fmt: skip
    for kind in own:
        setattr(module, kind.__name__, kind)
    for short, name in SHORT.items():
        setattr(module, short, DataType[name])
    module.ILayer, module.volume, module.nptype = Layer, _volume, _nptype
    module.get_plugin_registry = Registry
    module.__version__ = version
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    module.tensorrt = AnyModule("tensorrt.tensorrt")
    sys.modules["tensorrt"], sys.modules["tensorrt.tensorrt"] = module, module.tensorrt
