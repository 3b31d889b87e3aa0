"""The compiler half of the stand-in."""
