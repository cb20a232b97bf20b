"""The one exception for input that a user can put right."""


class UserError(ValueError):
    """Bad input: the message names the config key or file and line, what was found, what is right.

    Entry points print the message without a traceback and exit with a non-zero code.
    """
