"""The kit for authors of sinks and sources: contracts, a faulty sink, seams for time and files."""
