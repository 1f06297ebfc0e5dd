"""The SuperNode of a deployment: Flower's own, which does not sleep through the beginning of a contact.

While its link is shut a SuperNode tries again after waits that grow to 20 s; a contact that begins in such a wait loses them.

``python -m fedexperts.deploy.supernode`` takes the options of ``flower-supernode``.
"""

from __future__ import annotations

MOST_WAIT_S = 1.0
"""Between two tries while there is no link."""


def main() -> None:
    """As a program."""
    from flwr.supercore.retry import http_retry
    from flwr.supernode.cli import flower_supernode

    vars(http_retry)["MAX_RETRY_DELAY"] = MOST_WAIT_S  # a constant, for which there is no option
    flower_supernode()


if __name__ == "__main__":
    main()
