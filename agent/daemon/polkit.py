# SPDX-License-Identifier: Apache-2.0
"""Whether a D-Bus caller may do something: root may, others as polkit says (polkit(8), CheckAuthorization)."""

from __future__ import annotations

from dbus_next import Message, MessageFlag, Variant

from agent.errors import AccessDenied, CleatError
from agent.systemd.bus import Bus

_AUTHORITY = "org.freedesktop.PolicyKit1"
_PATH = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_INTERACTION = 1
# A person may be typing a password.
_TIMEOUT = 120.0


class Polkit:
    """`own_uid` is always allowed: root for the system's agent, the user for a user's."""

    def __init__(self, bus: Bus, own_uid: int) -> None:
        self._bus = bus
        self._own_uid = own_uid

    async def require(self, message: Message, action: str, container: str = "") -> None:
        """Raises AccessDenied when the sender may not do `action`.

        Rules see the method as `method` and the container as `container` (polkit(8), action.lookup()).
        """
        sender = message.sender or ""
        uid = await self._bus.peer_uid(sender)
        if uid in {0, self._own_uid}:
            return
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        subject = ["system-bus-name", {"name": Variant("s", sender)}]
        details = {"method": message.member or "", **({"container": container} if container else {})}
        flags = _ALLOW_INTERACTION if interactive else 0
        try:
            (answer,) = await self._bus.call(
                _AUTHORITY,
                _PATH,
                _INTERFACE,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                [subject, action, details, flags, ""],
                timeout=_TIMEOUT,
            )
        except CleatError as e:
            raise AccessDenied(
                f"uid {uid} may not do this", why=f"polkit did not answer: {e.why}", hint="use sudo"
            ) from e
        if not answer[0]:
            raise AccessDenied(
                f"uid {uid} may not do this",
                why=f"polkit refuses {action}",
                hint="use sudo, or a polkit rule",
            )
