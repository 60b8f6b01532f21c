"""Tests of lmeval."""
