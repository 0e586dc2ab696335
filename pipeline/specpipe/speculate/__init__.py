"""The algorithms of speculative decoding, numpy only. Read accept, then decode, then the rest."""
