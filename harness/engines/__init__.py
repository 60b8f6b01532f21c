"""Engines that generate responses, and the backends that start them, behind one contract."""
