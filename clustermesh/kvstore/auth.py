"""Users and roles of an etcd. A user is the common name of a client certificate, so no user has a password."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from clustermesh.kvstore.connection import Connection
from clustermesh.kvstore.errors import KvError, Stage
from clustermesh.kvstore.keyspace import prefix_range
from clustermesh.kvstore.rpc import etcd_pb2 as pb

log = logging.getLogger(__name__)

Kind = Literal["read", "write", "readwrite"]

_TYPES = {"read": pb.Permission.READ, "write": pb.Permission.WRITE, "readwrite": pb.Permission.READWRITE}
_KINDS: dict[int, Kind] = {number: kind for kind, number in _TYPES.items()}  # type: ignore[misc]


class Permission(NamedTuple):
    """A right on all keys under a prefix ("" = every key), or, with exact=True, on that one key."""

    kind: Kind
    key: str
    exact: bool = False

    def range(self) -> tuple[bytes, bytes]:
        """(start, exclusive end) as etcd stores it; the end of a single key is empty."""
        return (self.key.encode(), b"") if self.exact else prefix_range(self.key)


class AuthAdmin:
    """Brings users and roles to a wanted state; needs a connection with the root role. Raises KvError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ensure_role(self, name: str, permissions: Sequence[Permission]) -> bool:
        """The role exists and has exactly these permissions; whether it had others before."""
        wanted = {permission.range(): permission.kind for permission in permissions}
        present = await self._permissions(name)
        if present is None:
            await self._call("RoleAdd", pb.AuthRoleAddRequest(name=name), tolerate=Stage.EXISTS)
            present = {}
        excess = present.items() - wanted.items()
        for start, end in present.keys() - wanted.keys():
            request = pb.AuthRoleRevokePermissionRequest(role=name, key=start, range_end=end)
            await self._call("RoleRevokePermission", request, tolerate=Stage.MISSING)
        for (start, end), kind in wanted.items():
            if present.get((start, end)) != kind:
                permission = pb.Permission(permType=_TYPES[kind], key=start, range_end=end)
                request = pb.AuthRoleGrantPermissionRequest(name=name, perm=permission)
                await self._call("RoleGrantPermission", request)
        return bool(excess)

    async def delete_role(self, name: str) -> None:
        """The role does not exist; its users lose it."""
        await self._call("RoleDelete", pb.AuthRoleDeleteRequest(role=name), tolerate=Stage.MISSING)

    async def ensure_user(self, name: str, roles: Iterable[str]) -> bool:
        """The user exists and has exactly these roles; whether it had others before. A missing role root is made."""
        wanted = set(roles)
        user = await self._call("UserGet", pb.AuthUserGetRequest(name=name), tolerate=Stage.MISSING)
        if user is None:
            request = pb.AuthUserAddRequest(name=name, options=pb.UserAddOptions(no_password=True))
            await self._call("UserAdd", request, tolerate=Stage.EXISTS)
        present = set() if user is None else set(user.roles)
        if "root" in wanted - present:
            await self._call("RoleAdd", pb.AuthRoleAddRequest(name="root"), tolerate=Stage.EXISTS)
        for role in sorted(wanted - present):
            await self._call("UserGrantRole", pb.AuthUserGrantRoleRequest(user=name, role=role))
        for role in sorted(present - wanted):
            request = pb.AuthUserRevokeRoleRequest(name=name, role=role)
            await self._call("UserRevokeRole", request, tolerate=Stage.MISSING)
        return bool(present - wanted)

    async def delete_user(self, name: str) -> None:
        """The user does not exist. Watches that it opened before go on until their connection ends."""
        await self._call("UserDelete", pb.AuthUserDeleteRequest(name=name), tolerate=Stage.MISSING)

    async def users(self) -> list[str]:
        """Names of all users."""
        answer = await self._call("UserList", pb.AuthUserListRequest())
        return list(answer.users)

    async def roles(self) -> list[str]:
        """Names of all roles."""
        answer = await self._call("RoleList", pb.AuthRoleListRequest())
        return list(answer.roles)

    async def enable(self) -> bool:
        """Turn on access control; user root with role root must exist. Whether it was found off.

        etcd before 3.5 does not tell: there it is only turned on, to no effect if it is.
        """
        status = await self._call("AuthStatus", pb.AuthStatusRequest(), tolerate=Stage.UNSUPPORTED)
        if status is None or not status.enabled:
            await self._call("AuthEnable", pb.AuthEnableRequest())
        return status is not None and not status.enabled

    async def _permissions(self, role: str) -> dict[tuple[bytes, bytes], Kind] | None:
        answer = await self._call("RoleGet", pb.AuthRoleGetRequest(role=role), tolerate=Stage.MISSING)
        if answer is None:
            return None
        return {(perm.key, perm.range_end): _KINDS[perm.permType] for perm in answer.perm}

    async def _call(self, method: str, request: Any, *, tolerate: Stage | None = None) -> Any:
        """One call of etcd's Auth service; None if it failed in the way that is fine here."""
        try:
            return await self._connection.unary(lambda session: getattr(session.auth, method), request)
        except KvError as error:
            if error.stage is tolerate:
                return None
            raise
