"""What runs share beyond one folder: stages trained once, and a store that other machines reach, with its lease."""
