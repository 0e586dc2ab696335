"""The CPU engine: an OpenVINO graph with paged attention, one call for many sequences.

Not here: sampling, drafting and acceptance. The engine knows tokens, rows and blocks.
"""
