"""Strangers at every door of the pipeline: generated input that must be refused with a reason, and must cost nobody else."""
