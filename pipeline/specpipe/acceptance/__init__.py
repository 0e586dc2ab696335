"""`specpipe acceptance`: runs the steps that need a GPU as child processes, and writes a report.

Not here: the work of a step, which the other commands do.
"""
