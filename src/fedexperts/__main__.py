"""``python -m fedexperts`` is ``fedexperts``."""

from .cli.main import main

main()
