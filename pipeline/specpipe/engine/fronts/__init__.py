"""Servers other than Triton for runs without engines: one file for each, and a table.

Not here: the compose files and manifests around them (`deploy`).
"""
