"""`make chaos`: a real pipeline under real faults, and then every single event is looked for in the lake."""
