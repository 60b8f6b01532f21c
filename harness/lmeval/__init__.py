"""Everything that uses lm-eval's task objects: loading tasks, their prompts and grades, and checks of task files."""
