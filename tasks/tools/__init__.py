"""Tool-use tasks: ToolAlpaca and the tiny suite's tool families."""
