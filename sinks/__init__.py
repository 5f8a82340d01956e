"""Sinks, one module each. A new sink is one file here, one test, one example.

A module holds a docstring (protocol, limits, guarantees), a ``SinkConfig`` with described fields, a ``Sink`` and
the line ``SINK = TheSink``; if the backend can be read, a ``Reader`` and ``READER = TheReader``. It may import
``shipper.record``, ``shipper.errors``, ``shipper.sink``, ``shipper.reader``, ``shipper.units``, the seams ``shipper.clock`` and
``shipper.fs``, and its SDK, and nothing else of ours.
Read ``shipper/sink.py`` and ``sinks/stdout.py`` and begin.
"""
