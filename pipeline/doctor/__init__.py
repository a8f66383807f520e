"""`telemetry doctor`: looks at everything a pipeline stands on, changes nothing, and says what to do."""
