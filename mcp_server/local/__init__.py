"""The embedded stack: what runs here when no remote address is given."""
