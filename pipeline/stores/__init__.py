"""What outlives a process: Redis Streams and leases, the rulebook, the lake and its catalog."""
