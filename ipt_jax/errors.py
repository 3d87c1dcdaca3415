"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input, a wrong setting or a full disk: something the user can mend.

    The message is one paragraph that names the file, record or key, says what was wrong there
    and what to do. Launch scripts print it and exit with code 2.
    """
