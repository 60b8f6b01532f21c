"""The report's figures, drawn from tidy frames."""
