"""Task files in lm-eval's format, their graders and generators, and the suites built from them."""
