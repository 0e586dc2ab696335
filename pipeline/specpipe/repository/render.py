"""config.pbtxt, rendered through the very protobuf that Triton reads."""

from collections.abc import Mapping

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from specpipe.repository.signature import Signature, Tensor


def render(
    name: str, signature: Signature, parameters: Mapping[str, str], *, decoupled: bool
) -> str:
    """Return the config.pbtxt of one Python model with `parameters`, for one prompt a request."""
    config = pb.ModelConfig(
        name=name,
        backend="python",
        max_batch_size=1,
        input=[_input(t) for t in signature.inputs],
        output=[_output(t) for t in signature.outputs],
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=decoupled),
    )
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    text: str = text_format.MessageToString(config)
    return text


def parse(text: str) -> pb.ModelConfig:
    """Read a config.pbtxt back; raises text_format.ParseError if Triton would refuse it."""
    return text_format.Parse(text, pb.ModelConfig())


def _input(tensor: Tensor) -> pb.ModelInput:
    return pb.ModelInput(
        name=tensor.name,
        data_type=pb.DataType.Value(f"TYPE_{tensor.data_type}"),
        dims=tensor.dims,
        optional=tensor.optional,
        allow_ragged_batch=tensor.ragged,
        reshape=pb.ModelTensorReshape(shape=[]) if tensor.scalar else None,
    )


def _output(tensor: Tensor) -> pb.ModelOutput:
    return pb.ModelOutput(
        name=tensor.name,
        data_type=pb.DataType.Value(f"TYPE_{tensor.data_type}"),
        dims=tensor.dims,
    )
