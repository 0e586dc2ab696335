"""Stage 3: writes a Triton model repository.

Not here: the code that runs inside Triton (`runtime`), and the server process (`serve`).
"""
