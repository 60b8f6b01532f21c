"""Helpers that tests share: small models, stages, run directories."""
