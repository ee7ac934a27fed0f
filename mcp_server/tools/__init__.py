"""One file per capability: the tools."""
