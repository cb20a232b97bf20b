"""The exception for input that a user can put right, and what Ctrl-C looks like."""

import signal


class UserError(ValueError):
    """Bad input: the message names the config key or file and line, what was found, what is right.

    Entry points print the message without a traceback and exit with a non-zero code.
    """


class Interrupt:
    """Remembers Ctrl-C.

    ``KeyboardInterrupt`` is lost where it comes up in a destructor or a callback, and replaced by
    another exception where what it interrupts fails to clean up.
    """

    came = False

    @classmethod
    def listen(cls) -> None:
        """From now on SIGINT is remembered, and raises ``KeyboardInterrupt`` as ever."""

        def interrupt(*_: object) -> None:
            cls.came = True
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)

    @classmethod
    def check(cls) -> None:
        """``KeyboardInterrupt`` if one was lost."""
        if cls.came:
            raise KeyboardInterrupt
