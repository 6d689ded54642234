"""The event log: segments of Arrow batches, as told in FORMAT.md."""
