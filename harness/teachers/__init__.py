"""Teachers: how a stage's teacher scores the student's tokens."""
