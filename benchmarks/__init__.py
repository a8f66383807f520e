"""What the pipeline costs, beside the limit of the machine, in one run: `make bench`."""
