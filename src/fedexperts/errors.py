"""The one error for input that is wrong."""


class InputError(ValueError):
    """What the user gave cannot work; the message names the field, the value, the bound and the remedy."""
