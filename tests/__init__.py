"""Tests mirror the packages: what the software promises, one file per module."""
