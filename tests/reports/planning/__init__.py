"""Tests of plans made before runs."""
