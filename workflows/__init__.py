"""Deterministic orchestration: what happens in which order, retries, progress. No I/O."""
