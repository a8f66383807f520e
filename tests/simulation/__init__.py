"""Whole runs in memory: real workers on the stores' twins, under schedules of faults."""
