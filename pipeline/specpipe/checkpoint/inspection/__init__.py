"""`specpipe inspect`: describes a checkpoint or an engine, and lists its defects.

Not here: anything that writes.
"""
