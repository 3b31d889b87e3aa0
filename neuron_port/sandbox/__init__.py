"""Candidate kernels run here: read before they run, confined while they run, and able to give back arrays only."""
