"""Render config.pbtxt with the protobuf definition that Triton reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from specpipe.repository.signature import Signature, Tensor


@dataclass(frozen=True)
class ServedModel:
    """The configuration of one model of a repository."""

    name: str
    signature: Signature
    parameters: Mapping[str, str] = field(default_factory=dict)
    backend: str = "python"
    decoupled: bool = False
    max_batch_size: int = 1
    instances: int = 1
    max_queue_size: int | None = None  # None: requests are not queued by Triton's batcher


def render(model: ServedModel) -> str:
    """Return the config.pbtxt of one model."""
    config = pb.ModelConfig(
        name=model.name,
        backend=model.backend,
        max_batch_size=model.max_batch_size,
        input=[_input(t) for t in model.signature.inputs],
        output=[_output(t) for t in model.signature.outputs],
        instance_group=[
            pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=model.instances)
        ],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=model.decoupled),
        dynamic_batching=_batching(model),
    )
    for key, value in sorted(model.parameters.items()):
        config.parameters[key].string_value = value
    return to_text(config)


def to_text(config: pb.ModelConfig) -> str:
    """Return a config.pbtxt; the inverse of `parse`."""
    text: str = text_format.MessageToString(config)
    return text


def parse(text: str) -> pb.ModelConfig:
    """Parse a config.pbtxt; raises text_format.ParseError if Triton would refuse it."""
    return text_format.Parse(text, pb.ModelConfig())


def _batching(model: ServedModel) -> pb.ModelDynamicBatching | None:
    if model.max_queue_size is None:
        return None
    policy = pb.ModelQueuePolicy(max_queue_size=model.max_queue_size)
    sizes = [model.max_batch_size] if model.max_batch_size > 1 else []
    return pb.ModelDynamicBatching(preferred_batch_size=sizes, default_queue_policy=policy)


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
