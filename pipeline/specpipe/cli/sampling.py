"""The sampling flags, with the meaning of other servers, translated to TensorRT-LLM's rule."""

Flags = tuple[float | None, int | None, float | None]  # temperature, top_k, top_p


def to_upstream(temperature: float | None, top_k: int | None, top_p: float | None) -> Flags:
    """Return the values to send to a TensorRT-LLM server for the flags of a user.

    TensorRT-LLM ignores a temperature unless `top_k` or `top_p` is given too
    (triton-inference-server/tensorrtllm_backend, issue 221), and older releases refuse 0.
    """
    if temperature == 0:
        return None, 1, None
    if temperature is not None and top_k is None and top_p is None:
        return temperature, None, 1.0
    return temperature, top_k, top_p
