"""DVC's SSH with two habits of OpenSSH: an unknown host key is refused, and a silent server is given up.

DVC itself takes any host key, so that whoever stands in the server's place gets what is pushed.
"""

from __future__ import annotations

from typing import Any

from dvc_ssh import SSHFileSystem

ALIVE_EVERY = 10  # seconds between questions whether the server is there
ALIVE_TIMES = 3  # unanswered ones until it is not


class StrictSSH(SSHFileSystem):  # type: ignore[misc]  # DVC has no types
    """An SSH remote whose host key must be in ~/.ssh/known_hosts."""

    def _prepare_credentials(self, **config: Any) -> dict[str, Any]:
        login = super()._prepare_credentials(**config)
        # an empty tuple is asyncssh's word for the user's own known_hosts and ssh config; None is for none at all
        return {**login, "known_hosts": (), "keepalive_interval": ALIVE_EVERY, "keepalive_count_max": ALIVE_TIMES}
