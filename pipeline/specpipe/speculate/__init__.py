"""The algorithms of speculative decoding, numpy only. Read `accept` and `decode` first."""
