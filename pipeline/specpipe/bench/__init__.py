"""`specpipe bench`: measures runs on this machine and returns records.

Not here: printing (`cli`), and the choice of settings (`tune`).
"""
