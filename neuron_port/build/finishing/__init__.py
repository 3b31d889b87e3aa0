"""What `finish.py` runs: standard library only, copied into every bundle beside it."""
