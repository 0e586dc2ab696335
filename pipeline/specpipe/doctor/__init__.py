"""`specpipe doctor`: what this machine has, and what a run lacks."""
