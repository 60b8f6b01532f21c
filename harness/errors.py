"""Errors that a user can cause: each message is one sentence that says what was found, what was expected and what to do.

Each class below the base also inherits the builtin exception that a caller would expect, so `except ValueError` works too.
"""


class HarnessError(Exception):
    """Base of all errors that the command line prints as one sentence instead of a traceback."""


class ConfigError(HarnessError, ValueError):
    """A suite, task or option that cannot be used as it is written."""


class TaskError(HarnessError, ValueError):
    """A task file, its data or its grader that cannot be used for what it was asked."""


class ModelError(HarnessError, ValueError):
    """A model or tokenizer that cannot be loaded, or that does not fit its teacher."""


class RunError(HarnessError, RuntimeError):
    """A run directory in a state that the command cannot continue from."""


class InUseError(RunError):
    """A run directory that another process holds."""


class TrainingError(HarnessError, RuntimeError):
    """Training that cannot continue: a loss that is not finite, a teacher that returns no usable score."""


class NotFiniteError(TrainingError):
    """A loss or gradient that is not finite; raised before the weights change."""


class StoppedError(KeyboardInterrupt):
    """A run that a signal stopped: finished work stays, and the same command continues.

    It is not a `HarnessError`: like Ctrl-C it passes through `except Exception`.
    """
