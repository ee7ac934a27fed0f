"""The MCP face: validate, resolve the user, start the workflow."""
