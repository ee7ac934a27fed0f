"""Where records live: one protocol, two engines."""
