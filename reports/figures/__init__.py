"""Figures drawn from tidy frames."""
