"""A mock of the model of Triton's `vllm` backend as clients see it: it counts.

The answer to any prompt is " one two three ..." up to `max_tokens` words. Inputs, outputs and
refusals are those of upstream's `GenerateRequest`: no batch dimension, options as one JSON text,
`num_output_tokens` of every response alone, `finish_reason` None until the end.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

WORDS = (" one", " two", " three", " four", " five", " six", " seven", " eight")
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
FLAGS = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
SAMPLING = {"max_tokens": int, "temperature": (int, float), "top_k": int, "top_p": (int, float),
            "repetition_penalty": float, "presence_penalty": float, "frequency_penalty": float,
            "min_tokens": int, "seed": int, "stop": list, "stop_token_ids": list,
            "bad_words": list, "ignore_eos": bool}  # fmt: skip


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                for response, flags in self.answer(request):
                    sender.send(response, flags=flags)
            except Exception as error:
                text = f"Error generating stream: {error}"
                failed = pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
                sender.send(failed, flags=FINAL)

    def answer(self, request):
        inputs = {tensor.name(): tensor.as_numpy()[0] for tensor in request.inputs()}
        asked = json.loads(inputs["sampling_parameters"])
        wrong = [name for name, value in asked.items()
                 if name not in SAMPLING or not isinstance(value, SAMPLING[name])]  # fmt: skip
        if wrong or asked.get("temperature", 1.0) != 0:
            raise ValueError("'NoneType' object has no attribute 'lora_name'")
        stream = bool(inputs.get("stream", False))
        shows_prompt = not inputs.get("exclude_input_in_output", stream)
        if shows_prompt and stream:
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        words = [WORDS[n % len(WORDS)] for n in range(asked["max_tokens"])]
        begin = inputs["text_input"].decode() if shows_prompt else ""
        wants = [name for name in FLAGS if inputs.get(name)]
        ends = [*range(2, len(words), 2), len(words)] if stream else [len(words)]
        for before, end in zip([0, *ends], ends, strict=False):
            last = end == len(words)
            yield (
                response(begin + "".join(words[before:end]), end - before, wants, last),
                (FINAL if last else 0),
            )


def response(text, tokens, wants, last):
    reason = b"length" if last else b"None"
    values = {"return_finish_reason": ("finish_reason", [reason], np.object_),
              "return_num_input_tokens": ("num_input_tokens", [9], np.uint32),
              "return_num_output_tokens": ("num_output_tokens", [tokens], np.uint32)}  # fmt: skip
    tensors = [pb_utils.Tensor("text_output", np.asarray([text.encode()], np.object_))]
    tensors += [pb_utils.Tensor(name, np.asarray(value, kind))
                for name, value, kind in map(values.get, wants)]  # fmt: skip
    return pb_utils.InferenceResponse(tensors)
