"""A gRPC client for asyncio, which reads one answer per call; `client` is the one for threads.

tritonclient's own class for asyncio cannot ask for the mark of the last response.
"""

import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, serialize_byte_tensor

from specpipe.serve.connect import ClientTls, channel_options
from specpipe.serve.inputs import ModelRequest
from specpipe.serve.pieces import Piece, Reader
from specpipe.serve.refusals import refusal

_READY_SECONDS = 5
_FIELDS = {bool: "bool_param", int: "int64_param", str: "string_param"}  # of a parameter


class AsyncClient:
    """A connection to one server, for all requests of one event loop."""

    def __init__(self, url: str, tls: ClientTls | None = None) -> None:
        """Open nothing yet; must be called inside the running loop."""
        self._url = url
        self._channel = _channel(url, tls)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        """Yield an answer piece by piece; closing the generator cancels the request.

        Raises what `Client.stream` raises.
        """
        reader, began, answered = Reader(request.model), time.perf_counter(), False
        call = self._stub.ModelStreamInfer()  # open until the answer is complete: else it is cut
        try:
            await call.write(infer_request(request))
            async for response in call:
                if response.error_message:
                    error = InferenceServerException(response.error_message)
                    raise refusal(error, self._url, answered=answered)
                answered, result = True, InferResult(response.infer_response)
                piece = reader.piece(result, time.perf_counter() - began)
                yield piece
                if piece.final:
                    return
        except grpc.RpcError as error:
            raise refusal(_as_triton(error), self._url, answered=answered) from error
        finally:
            call.cancel()

    async def is_ready(self) -> bool:
        """Tell whether the server and its models are ready."""
        request = service_pb2.ServerReadyRequest()
        try:
            return bool((await self._stub.ServerReady(request, timeout=_READY_SECONDS)).ready)
        except grpc.RpcError:
            return False


def infer_request(request: ModelRequest) -> Any:
    """Return the message for a request; the last response of the answer is marked."""
    message = service_pb2.ModelInferRequest(model_name=request.model.name)
    for name, array in request.inputs.items():
        kind = np_to_triton_dtype(array.dtype)
        message.inputs.add(name=name, datatype=kind, shape=array.shape)
        message.raw_input_contents.append(_content(array))
    for name, value in request.parameters.items():
        setattr(message.parameters[name], _FIELDS[type(value)], value)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    return message


def _content(array: NDArray[Any]) -> bytes:
    """Return a tensor's bytes; texts are preceded by their lengths."""
    if array.dtype != np.object_:
        return array.tobytes()
    packed = serialize_byte_tensor(array)
    return bytes(packed.item()) if packed.size else b""


def _channel(url: str, tls: ClientTls | None) -> Any:
    options = channel_options(url)
    if tls is None:
        return grpc.aio.insecure_channel(url, options)
    files = (tls.ca, tls.key, tls.certificate)
    credentials = grpc.ssl_channel_credentials(
        *(None if file is None else file.read_bytes() for file in files)
    )
    return grpc.aio.secure_channel(url, credentials, options)


def _as_triton(error: Any) -> InferenceServerException:
    return InferenceServerException(msg=error.details(), status=str(error.code()))
