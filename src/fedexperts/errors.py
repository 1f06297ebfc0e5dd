"""What stops a command with a message: wrong input, a machine that refuses, numbers not finite; and a warning of input."""


class InputError(ValueError):
    """What the user gave cannot work; the message names the field, the value, the bound and the remedy."""


class InputWarning(UserWarning):
    """What the user gave works, and may not be what was meant; the message names the place and the remedy."""


class Diverged(ArithmeticError):  # noqa: N818  # it is what became of a run
    """Nothing finite is left of a part, or an evaluation is not finite; the run stops, and its last checkpoint stays."""


class RunError(RuntimeError):
    """The machine refuses, as a full disk does; the message names the file and the cause.

    What a run had written before stays valid: with ``resume`` it goes on from its last checkpoint.
    """
