"""Everything that touches lm-eval: tasks and prompts, the evaluator, checks of a task file."""
