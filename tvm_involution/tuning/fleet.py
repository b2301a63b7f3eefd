# SPDX-License-Identifier: Apache-2.0
"""Devices registered at a TVM RPC tracker, of which any may go at any moment.

A device that goes is no fault of the candidate on it. So a worker knows which device it has, and where a call to it
fails asks the tracker whether it is still there. TVM 0.27's server goes with a candidate that crashes, too: one that
has cost two devices is not tried a third time, nor recorded.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tvm import rpc
from tvm.rpc import base

from ..errors import UserError

_T = TypeVar("_T")
_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 1.0
WAIT_SECONDS = 60.0
"""for a device: others may use them"""
# the tracker hears of a server that dies when its connection closes
_GRACE_SECONDS = 1.0


class LostDeviceError(RuntimeError):
    """The device went while it was in use, or none is to be had."""


@dataclass(frozen=True)
class RpcTracker:
    """A tracker's address and the key under which the devices are registered."""

    host: str
    port: int
    key: str

    def devices(self) -> list[tuple[str, int]]:
        """Return the addresses of the devices that are registered, busy ones too.

        Raises:
            UserError: the tracker cannot be reached.
        """
        try:
            with self._connect() as connection:
                return self._devices(connection)
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                f"no RPC tracker at {self.host}:{self.port}; start one with `python -m tvm.exec.rpc_tracker --host "
                f"0.0.0.0 --port {self.port} --port-end {self.port + 1}`; what was measured is safe, and the same "
                "command goes on"
            ) from error

    def check(self) -> int:
        """Return how many devices are registered.

        Raises:
            UserError: none is, or the tracker cannot be reached.
        """
        if not (count := len(self.devices())):
            raise UserError(
                f"no device with key {self.key!r} at the tracker {self.host}:{self.port}; start one with `python -m "
                f"tvm.exec.rpc_server --tracker {self.host}:{self.port} --key {self.key}`; what was measured is safe, "
                "and the same command goes on"
            )
        return count

    def use(self, function: Callable[[rpc.RPCSession], _T], seconds: int) -> _T:
        """Return what `function` does with the next device that is free, for `seconds` at most.

        Raises:
            LostDeviceError: the device went, or there is none to wait for.
        """
        host, port, match_key = self._request()
        try:
            return function(rpc.connect(host, port, match_key, session_timeout=seconds))
        except Exception as error:
            if self._is_gone((host, port)):
                raise LostDeviceError(f"the device at {host}:{port} went: {error}") from error
            raise

    def _request(self) -> tuple[str, int, str]:
        deadline = time.monotonic() + WAIT_SECONDS
        try:
            with self._connect() as connection:
                base.sendjson(connection, [base.TrackerCode.REQUEST, self.key, "", 1])
                while not select.select([connection], [], [], _LOOK_SECONDS)[0]:
                    if time.monotonic() > deadline or not self.devices():
                        raise LostDeviceError(f"no device with key {self.key!r} is free")
                code, found = base.recvjson(connection)
        except (OSError, ValueError, UserError) as error:
            raise LostDeviceError(f"no tracker at {self.host}:{self.port}: {error}") from error
        if code != base.TrackerCode.SUCCESS:
            raise LostDeviceError(f"the tracker at {self.host}:{self.port} refuses: {found}")
        return str(found[0]), int(found[1]), str(found[2])

    def _is_gone(self, address: tuple[str, int]) -> bool:
        time.sleep(_GRACE_SECONDS)
        try:
            return address not in self.devices()
        except UserError:
            return True

    def _devices(self, connection: socket.socket) -> list[tuple[str, int]]:
        base.sendjson(connection, [base.TrackerCode.SUMMARY])
        _, summary = base.recvjson(connection)
        return [
            (str(item["addr"][0]), int(item["addr"][1]))
            for item in summary["server_info"]
            if item["key"].split(":", 1)[-1] == self.key
        ]

    def _connect(self) -> socket.socket:
        # TVM's own client goes on trying for a minute
        connection = socket.create_connection((self.host, self.port), timeout=_CONNECT_SECONDS)
        try:
            connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            if struct.unpack("<i", base.recvall(connection, 4))[0] != base.RPC_TRACKER_MAGIC:
                raise OSError("no RPC tracker answers")
        except BaseException:
            connection.close()
            raise
        return connection
