"""Many SSH packets at once: one copy, one system call, where paramiko makes six copies and a call for each.

A packet holds 32 KiB at most with OpenSSH, so the cost of each decides how fast files are sent
(docs/decisions/0019-ssh-packets-in-batches.md).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any, cast

import paramiko
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from paramiko.common import MSG_CHANNEL_DATA
from paramiko.packet import Packetizer

_HEAD = struct.Struct(">IBBII")  # packet length, padding length; type, channel, length of the content
_DATA = struct.Struct(">BII")  # type, channel, length of the content
_CLEAR = 4  # the packet's length is not encrypted
_TAG = 16
_BLOCK = 16
_LEAST_PADDING = 4
_AT_ONCE = 1 << 16


class ChannelData:
    """What a `Transport` with `BatchPacketizer` sends in place of a Message: each part is one packet's content."""

    def __init__(self, channel: int, parts: Sequence[bytes | memoryview]) -> None:
        self.channel = channel
        self.parts = parts

    def messages(self) -> Sequence[paramiko.Message]:
        """The same for any packetizer."""
        return [
            paramiko.Message(b"".join((_DATA.pack(MSG_CHANNEL_DATA, self.channel, len(part)), part)))
            for part in self.parts
        ]


class BatchPacketizer(Packetizer):
    """paramiko's, that also sends `ChannelData`: encrypted into one buffer where the cipher is AES-GCM."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._sending = threading.RLock()
        self._gcm: _Gcm | None = None
        self._room = bytearray()
        self._sent = 0
        self._shaken = False

    def set_outbound_cipher(self, block_engine: Any, *rest: Any, **options: Any) -> None:
        with self._sending:
            self._gcm = _Gcm(block_engine, options["iv_out"]) if options.get("aead") else None
            self._sent = 0
            super().set_outbound_cipher(cast(Any, self._gcm or block_engine), *rest, **options)

    def send_message(self, data: paramiko.Message | ChannelData) -> None:
        with self._sending:
            if not isinstance(data, ChannelData):
                super().send_message(data)
            elif self._gcm:
                self._send(data, self._gcm)
            else:
                for message in data.messages():
                    super().send_message(message)

    def complete_handshake(self) -> None:
        """Once: paramiko says so after each message, and each time ends a timer that has long ended."""
        if not self._shaken:
            super().complete_handshake()
            self._shaken = True

    def _send(self, data: ChannelData, gcm: _Gcm) -> None:
        packets = memoryview(_packets(data))
        size = len(packets) + _TAG * len(data.parts)
        if len(self._room) < size:
            self._room = bytearray(size)
        room, start, end = memoryview(self._room), 0, 0
        while start < len(packets):
            length = _CLEAR + int.from_bytes(packets[start : start + _CLEAR], "big")
            gcm.encrypt_packet(packets[start : start + length], room[end : end + length + _TAG])
            start, end = start + length, end + length + _TAG
        self.write_all(room[:size])
        self._sent += size
        if self._sent >= self.REKEY_BYTES and not self.need_rekey():
            cast(Any, self)._trigger_rekey()


def _packets(data: ChannelData) -> bytes:
    """One after another, as they are before they are encrypted."""
    noise = os.urandom(_LEAST_PADDING + _BLOCK)
    pieces: list[bytes | memoryview] = []
    for part in data.parts:
        unpadded = _HEAD.size - _CLEAR + len(part)
        padding = _LEAST_PADDING + -(unpadded + _LEAST_PADDING) % _BLOCK
        head = _HEAD.pack(unpadded + padding, padding, MSG_CHANNEL_DATA, data.channel, len(part))
        pieces += (head, part, noise[:padding])
    return b"".join(pieces)


class BufferedSocket(socket.socket):
    """Takes in at once what has arrived: paramiko asks for the few bytes of each packet by two calls."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._received = b""

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._received:
            self._received = super().recv(_AT_ONCE, flags)
        taken, self._received = self._received[:size], self._received[size:]
        return taken


class _Gcm:
    """Takes the engine's place, and counts for all who encrypt with it: no nonce is ever used twice."""

    def __init__(self, engine: AESGCM, iv: bytes) -> None:
        self._engine = engine
        self._fixed, self._count = iv[:4], int.from_bytes(iv[4:], "big")

    def _nonce(self) -> bytes:
        nonce = self._fixed + self._count.to_bytes(8, "big")
        self._count = (self._count + 1) % (1 << 64)
        return nonce

    def encrypt(self, _iv: bytes, content: bytes, clear: bytes) -> bytes:
        """As paramiko calls it, which counts too."""
        return self._engine.encrypt(self._nonce(), content, clear)

    def encrypt_packet(self, packet: memoryview, room: memoryview) -> None:
        room[:_CLEAR] = packet[:_CLEAR]
        self._engine.encrypt_into(self._nonce(), packet[_CLEAR:], packet[:_CLEAR], room[_CLEAR:])
