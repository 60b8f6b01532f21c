"""Tests of comparisons of two methods."""
