"""Stage 4: the tritonserver process, its watchdog, and the gRPC client.

Not here: the code that runs inside the server (`runtime`).
"""
