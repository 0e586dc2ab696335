"""`specpipe inspect`: what a checkpoint or an engine is, and what is wrong with it."""
