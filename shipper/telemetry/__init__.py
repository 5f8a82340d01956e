"""Telemetry: the daemon's own voice: its log, metrics, health, status, and the HTTP endpoint that serves them.

`logs` writes the daemon's log and `metrics` counts; every part of the daemon uses these two, so begin there. `health`
tells which component is well, `status` what that means for people, `http` serves it, `endpoint` asks a running daemon,
`crash` leaves a file behind. Imports `shipper.config` and what is below it; knows neither sources nor sinks.
"""
