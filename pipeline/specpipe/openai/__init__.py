"""The OpenAI-compatible front: HTTP in front of any Triton server that specpipe can call.

It reads OpenAI's request bodies, sends them over gRPC to the text model that the server's
description names, and writes OpenAI's answers.

Not here: Triton's process and the gRPC clients (`serve/`), and decoding (`runtime/`).
"""
