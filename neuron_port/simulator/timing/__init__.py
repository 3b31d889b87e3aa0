"""Predicts when each instruction of an executed trace runs: costs, dependencies, schedule, timeline."""
