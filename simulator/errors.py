"""What ends a run early. The message is one line that names the bad thing and the way out."""


class UserError(Exception):
    """Something its user can put right: a wrong path, column, address or token. Exit code 2, no traceback."""
