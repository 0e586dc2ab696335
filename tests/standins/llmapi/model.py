"""A mock of TensorRT-LLM's `llmapi` model as clients see it: it counts.

The answer to any prompt is " one two three ..." up to `sampling_param_max_tokens` words. What
upstream's model.py refuses is refused, with its words; streamed responses carry the whole text so
far, and a character whose bytes are not complete yet is the replacement character.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

WORDS = (" one", " two", " thr", "\u00e9e", " four", " five", " six", " seven", " eight", " nine")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        policy = json.loads(args["model_config"])["model_transaction_policy"]
        self.decoupled = policy["decoupled"]

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                for response, flags in self.answer(request):
                    sender.send(response, flags=flags)
            except Exception as error:
                text = f"Error generating request: {error}"
                failed = pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
                sender.send(failed, flags=FINAL)

    def answer(self, request):
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        (prompt,) = inputs["text_input"]
        streaming = scalar(inputs, "streaming", False)
        if streaming and not self.decoupled:
            raise pb_utils.TritonModelException("Streaming is only supported in decoupled mode.")
        words = [WORDS[i % len(WORDS)] for i in range(scalar(inputs, "sampling_param_max_tokens"))]
        silent = scalar(inputs, "sampling_param_exclude_input_from_output", False)
        echo = "" if silent else prompt.decode()
        metrics = scalar(inputs, "sampling_param_return_perf_metrics", False)
        until = stop_at("".join(words), inputs.get("sampling_param_stop"))
        steps = range(2, len(words), 2) if streaming else ()
        for count in steps:
            text = "".join(words[:count])
            torn = words[count : count + 1] == ["\u00e9e"]
            yield responses(echo + (text + "\ufffd" if torn else text)[:until], 0, metrics), 0
        yield responses(echo + "".join(words)[:until], len(words), metrics), FINAL


def scalar(inputs, name, default=None):
    if name not in inputs:
        return default
    if inputs[name].shape != (1,):
        raise pb_utils.TritonModelException(f"Expected a scalar tensor for tensor {name}")
    return inputs[name].item()


def stop_at(text, stop):
    found = [text.find(word.decode()) for word in (stop if stop is not None else ())]
    return min([at for at in found if at >= 0], default=len(text))


def responses(text, drafted, metrics):
    """Return a response; upstream gives its figures in the type of the text."""
    tensors = [pb_utils.Tensor("text_output", np.asarray([text.encode()], np.object_))]
    if metrics:
        for name, value in (("total_draft_tokens", drafted),
                            ("total_accepted_draft_tokens", drafted // 2)):  # fmt: skip
            tensors.append(pb_utils.Tensor(name, np.asarray([value], np.object_)))
    return pb_utils.InferenceResponse(tensors)
