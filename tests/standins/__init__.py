"""Mock executables of a machine with a GPU; they check their arguments."""
