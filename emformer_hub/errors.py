"""The one exception that means "the input or the request is at fault, not the program"."""


class InputError(ValueError):
    """Something the user can mend: says what was found, what was expected, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
