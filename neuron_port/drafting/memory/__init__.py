"""What earlier runs learnt, in one SQLite file."""
