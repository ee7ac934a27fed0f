"""The side effects: Bedrock, the store, web search, files. Nothing here knows MCP or workflows."""
