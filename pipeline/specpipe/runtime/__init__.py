"""The code that runs in a server: many sequences that share one call of an engine.

Not here: Triton's API (`runtime/triton`), and the algorithms of one sequence (`speculate`).
"""
