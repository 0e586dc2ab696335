"""The algorithms of speculative decoding, numpy only. Read `accept` and `decode` first.

Not here: an engine. A method is a generator that asks for scores and is resumed with them.
"""
