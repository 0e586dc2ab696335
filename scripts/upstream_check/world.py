"""Make a tree of TensorRT-LLM importable without its libraries and without absent packages."""

import enum
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upstream_check import module as tensorrt
from upstream_check.enums import AnyMeta
from upstream_check.module import AnyModule
from upstream_check.network import ARRAYS

_ABSENT = frozenset(
    (
        "PIL", "StrEnum", "aenum", "ammo", "blake3", "build", "click_option_group", "colored",
        "cuda", "datasets", "deepspeed", "diffusers", "einops", "evaluate", "flashinfer", "flax",
        "graphviz", "h5py", "janus", "jax", "librosa", "llguidance", "modelopt", "mpi4py", "nemo",
        "nvtx", "onnx", "onnx_graphsurgeon", "optimum", "pandas", "polygraphy", "psutil", "pulp",
        "pynvml", "sentencepiece", "soundfile", "strenum", "tiktoken", "torchvision", "triton",
        "xgrammar", "zmq",
    )
)  # fmt: skip
_COMPILED = ("tensorrt_llm.bindings.", "tensorrt_llm.libs")


class _AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages that the network's definition does not need."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in _ABSENT or name.startswith(_COMPILED):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> AnyModule:
        module = AnyModule(spec.name)
        module.__path__ = []
        if spec.name == "strenum":
            module.StrEnum, module.LowercaseStrEnum = _StrEnum, _LowercaseStrEnum
        if spec.name == "onnx":
            module.__version__ = "1.15"
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _StrEnum(str, enum.Enum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last: Sequence[Any]) -> str:
        return name

    __str__ = str.__str__


class _LowercaseStrEnum(str, enum.Enum):
    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last: Sequence[Any]) -> str:
        return name.lower()

    __str__ = str.__str__


class _KVCacheType(enum.Enum):
    CONTINUOUS = 0
    PAGED = 1
    DISABLED = 2

    @classmethod
    def from_string(cls, text: str) -> "_KVCacheType":
        return cls[text.upper()]

    @classmethod
    def _missing_(cls, text: object) -> "_KVCacheType | None":
        return cls.__members__.get(str(text).upper())


class _RuntimeDefaults:
    def __init__(self, max_attention_window: Any = None, sink_token_length: Any = None) -> None:
        self.max_attention_window = max_attention_window
        self.sink_token_length = sink_token_length


def install(root: Path, version: str) -> None:
    """Let `import tensorrt_llm` find the Python of the tree `root`; call it once in a process."""
    _forgive_transformers()
    sys.meta_path.append(_AbsentFinder())
    tensorrt.install()
    found = importlib.metadata.version
    importlib.metadata.version = lambda name: "11.5.0" if name == "pynvml" else found(name)
    package = types.ModuleType("tensorrt_llm")
    package.__path__ = [str(root / "tensorrt_llm")]
    package.__version__ = version
    sys.modules["tensorrt_llm"] = package
    _install_bindings(package)
    sys.modules["tensorrt_llm.profiler"] = AnyModule("tensorrt_llm.profiler")
    import torch

    torch.cuda.is_available = lambda: False


def _forgive_transformers() -> None:
    """Have names that transformers 5 no longer has; import it before packages are hidden."""
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from transformers.utils.import_utils import _LazyModule

    lazy = _LazyModule.__getattr__

    def forgiving(self: Any, name: str) -> Any:
        try:
            return lazy(self, name)
        except AttributeError:
            if name == "AutoModelForVision2Seq":
                return AnyMeta(name, (), {})
            raise

    _LazyModule.__getattr__ = forgiving


def _install_bindings(package: types.ModuleType) -> None:
    names = ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "NVFP4"]
    module = AnyModule("tensorrt_llm.bindings")
    module.__path__ = []
    module.KVCacheType = _KVCacheType
    module.DataType = enum.IntEnum("DataType", {name: i for i, name in enumerate(names)})
    module.BuildInfo = AnyModule("tensorrt_llm.bindings.BuildInfo")
    module.BuildInfo.ENABLE_MULTI_DEVICE = 0
    module.executor = AnyModule("tensorrt_llm.bindings.executor")
    module.executor.__path__ = []
    module.executor.RuntimeDefaults = _RuntimeDefaults
    package.bindings = module
    for one in (module, module.BuildInfo, module.executor):
        sys.modules[one.__name__] = one


def patch_constants() -> None:
    """Let constants remember their arrays; a parameter without a value is an error."""
    from tensorrt_llm import functional, parameter

    original = functional.constant

    def constant(array: Any, *rest: Any, **named: Any) -> Any:
        array = np.ascontiguousarray(array).reshape(array.shape)
        ARRAYS[array.ctypes.data] = array
        return original(array, *rest, **named)

    for name, module in list(sys.modules.items()):
        if name.startswith("tensorrt_llm") and getattr(module, "constant", None) is original:
            module.constant = constant

    def create(self: Any, *_: object, **__: object) -> Any:
        assert self._value is not None, f"parameter without a value, shape {self._shape}"
        return constant(np.ascontiguousarray(self._value))

    parameter.Parameter._create_constant_tensor = create
