"""The exception for input that a user can put right, and what Ctrl-C looks like."""


class UserError(ValueError):
    """Bad input: the message names the config key or file and line, what was found, what is right.

    Entry points print the message without a traceback and exit with a non-zero code.
    """


def is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C brought an exception about: cleaning up after it may raise another error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
