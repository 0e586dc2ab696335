"""Stage 4: the tritonserver process, and the client that talks to it."""
