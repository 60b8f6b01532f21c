"""Tests of what reports read of run directories."""
