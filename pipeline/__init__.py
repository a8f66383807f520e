"""Telemetry from an HTTP POST to a row in SQL, exactly once: core decides, stores remember, thin files run."""
