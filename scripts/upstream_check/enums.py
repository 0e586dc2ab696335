"""The enumerations of the module `tensorrt`, and classes that are only named."""

import enum
from typing import Any

import torch


class DataType(enum.IntEnum):
    """TensorRT's types."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9
    FP4 = 10

    @property
    def itemsize(self) -> float:
        """Bytes of a value."""
        return {1: 2, 0: 4, 3: 4, 7: 2, 8: 8, 9: 0.5, 10: 0.5}.get(int(self), 1)


TORCH = {
    DataType.FLOAT: torch.float32, DataType.HALF: torch.float16, DataType.INT8: torch.int8,
    DataType.INT32: torch.int32, DataType.BOOL: torch.bool, DataType.UINT8: torch.uint8,
    DataType.FP8: torch.float8_e4m3fn, DataType.BF16: torch.bfloat16, DataType.INT64: torch.int64,
    DataType.INT4: torch.int8, DataType.FP4: torch.int8,
}  # fmt: skip
FROM_TORCH = {v: k for k, v in TORCH.items() if k not in (DataType.INT4, DataType.FP4)}
SHORT = {
    "float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "bool": "BOOL",
    "uint8": "UINT8", "fp8": "FP8", "bfloat16": "BF16", "int64": "INT64", "int4": "INT4",
    "fp4": "FP4",
}  # fmt: skip  # the module's short names of the types


class AnyMeta(type):
    """A class that has every attribute: for what is named, never used."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = AnyMeta(f"{cls.__name__}.{name}", (), {})
        setattr(cls, name, value)
        return value


def _enumeration(name: str, members: str) -> Any:
    return enum.IntEnum(name, {member: i for i, member in enumerate(members.split())})


ElementWiseOperation = _enumeration(
    "ElementWiseOperation",
    "SUM PROD MAX MIN SUB DIV POW FLOOR_DIV AND OR XOR EQUAL GREATER LESS",
)
UnaryOperation = _enumeration(
    "UnaryOperation",
    "EXP LOG SQRT RECIP ABS NEG SIN COS TAN SINH COSH ASIN ACOS ATAN ASINH ACOSH ATANH CEIL FLOOR "
    "ERF NOT SIGN ROUND ISINF ISNAN",
)
ActivationType = _enumeration(
    "ActivationType",
    "RELU SIGMOID TANH LEAKY_RELU ELU SELU SOFTSIGN SOFTPLUS CLIP HARD_SIGMOID SCALED_TANH "
    "THRESHOLDED_RELU GELU_ERF GELU_TANH",
)
ReduceOperation = _enumeration("ReduceOperation", "SUM PROD MAX MIN AVG")
MatrixOperation = _enumeration("MatrixOperation", "NONE TRANSPOSE VECTOR")
GatherMode = _enumeration("GatherMode", "DEFAULT ELEMENT ND")
ScatterMode = _enumeration("ScatterMode", "ELEMENT ND")
FillOperation = _enumeration("FillOperation", "LINSPACE RANDOM_UNIFORM RANDOM_NORMAL")
TopKOperation = _enumeration("TopKOperation", "MAX MIN")
SampleMode = _enumeration("SampleMode", "STRICT_BOUNDS WRAP CLAMP FILL REFLECT")
TensorLocation = _enumeration("TensorLocation", "DEVICE HOST")
TensorIOMode = _enumeration("TensorIOMode", "NONE INPUT OUTPUT")
TripLimit = _enumeration("TripLimit", "COUNT WHILE")
LoopOutput = _enumeration("LoopOutput", "LAST_VALUE CONCATENATE REVERSE")
LayerType = _enumeration(
    "LayerType",
    "CONVOLUTION CAST ACTIVATION POOLING LRN SCALE SOFTMAX DECONVOLUTION CONCATENATION ELEMENTWISE "
    "PLUGIN UNARY PADDING SHUFFLE REDUCE TOPK GATHER MATRIX_MULTIPLY RAGGED_SOFTMAX CONSTANT "
    "IDENTITY PLUGIN_V2 SLICE SHAPE PARAMETRIC_RELU RESIZE TRIP_LIMIT RECURRENCE ITERATOR "
    "LOOP_OUTPUT SELECT ASSERTION FILL QUANTIZE DEQUANTIZE CONDITION CONDITIONAL_INPUT "
    "CONDITIONAL_OUTPUT SCATTER EINSUM ONE_HOT NON_ZERO GRID_SAMPLE NMS REVERSE_SEQUENCE "
    "NORMALIZATION PLUGIN_V3",
)
NetworkDefinitionCreationFlag = _enumeration(
    "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH STRONGLY_TYPED"
)
PluginFieldType = _enumeration(
    "PluginFieldType", "UNKNOWN FLOAT32 FLOAT64 INT32 INT8 INT16 INT64 FLOAT16 CHAR DIMS"
)
