"""Tests of what reports read from run directories."""
