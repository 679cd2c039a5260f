"""The errors a user can act on."""


class RunError(Exception):
    """Something outside the program is wrong (disk, path, checkpoint): programs print its one line and exit with 1."""
