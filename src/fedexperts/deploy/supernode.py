"""The SuperNode of a deployment: Flower's own, which does not sleep through the beginning of a contact.

While its link is down a SuperNode asks in vain, for 30 s where nothing comes back and no time where it is refused. Then it
waits for 1 s, and twice as long each time, up to 20 s. What it is asking as the link comes back arrives: a relay keeps it, and
TCP sends it again. But a contact that begins in a wait loses the rest of it, and in a gap of minutes waits grow that long, on
one machine too. Here none is longer than a second.

``python -m fedexperts.deploy.supernode`` takes the options of ``flower-supernode``.
"""

from __future__ import annotations

MOST_WAIT_S = 1.0
"""Between two tries while there is no link."""


def main() -> None:
    """As a program."""
    from flwr.supercore.retry import http_retry
    from flwr.supernode.cli import flower_supernode

    vars(http_retry)["MAX_RETRY_DELAY"] = MOST_WAIT_S  # a constant of Flower's, for which it has no option
    flower_supernode()


if __name__ == "__main__":
    main()
