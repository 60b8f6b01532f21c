"""Make methods comparable: at equal learning, and at learning rates that are chosen in the same way for each method."""
