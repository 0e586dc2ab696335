"""The stages of a run, their artifacts, and what is up to date."""
