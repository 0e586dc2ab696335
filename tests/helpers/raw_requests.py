"""gRPC requests built tensor by tensor, without specpipe's own client."""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype


def tensors(values: Mapping[str, Any]) -> list[Any]:
    """Return inputs; numbers become [1, 1] INT32 or FP32, texts BYTES, arrays stay as they are."""
    found = []
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            array = value
        elif isinstance(value, bool):
            array = np.array([[value]])
        elif isinstance(value, int):
            array = np.array([[value]], np.int32)
        elif isinstance(value, float):
            array = np.array([[value]], np.float32)
        else:
            words = value if isinstance(value, list) else [value]
            raw = [w if isinstance(w, bytes) else w.encode() for w in words]
            array = np.array([raw], object)
        tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def stream(
    url: str,
    model: str,
    values: Mapping[str, Any],
    *,
    request_id: str = "",
    parameters: Mapping[str, Any] | None = None,
    take: int | None = None,
    ready: Callable[[], object] = lambda: None,
    on_result: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Return the results of a streaming call, or the exception at its end.

    `take` cancels after that many; `ready` is called between connecting and sending,
    `on_result` after every result.
    """
    answers: queue.Queue[Any] = queue.Queue()
    client = grpc.InferenceServerClient(url)
    client.start_stream(lambda result, error: answers.put(error or result))
    ready()
    client.async_stream_infer(
        model,
        tensors(values),
        request_id=request_id,
        enable_empty_final_response=True,
        parameters=dict(parameters or {}),
    )
    results: list[Any] = []
    ended = False
    try:
        while not ended and (take is None or len(results) < take):
            result = answers.get(timeout=60)
            results.append(result)
            on_result()
            ended = isinstance(result, Exception) or _is_final(result)
    finally:
        client.stop_stream(cancel_requests=not ended)
        client.close()
    return results


def _is_final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def unary(url: str, model: str, values: Mapping[str, Any]) -> Any:
    """Return the result of a ModelInfer call."""
    client = grpc.InferenceServerClient(url)
    try:
        return client.infer(model, tensors(values))
    finally:
        client.close()


def text(results: list[Any]) -> str:
    """Return the text of streamed results, in one piece."""
    return "".join(r.as_numpy("text_output")[0].decode("utf-8") for r in results)


def value(result: Any, name: str) -> float:
    """Return an output's only value."""
    array = result.as_numpy(name)
    assert array.shape == (1, 1), (name, array.shape)
    return array[0][0].item()


def together(count: int, run: Callable[[int], object]) -> None:
    """Run a function in several threads, to their end."""
    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
