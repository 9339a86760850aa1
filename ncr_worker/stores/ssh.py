"""The SSH connection to the SFTP server: tuned for speed, cut when it stalls.

The host key is checked against the pinned fingerprints before any credential is sent.
"""

from __future__ import annotations

import socket

import paramiko

from ncr_worker.errors import ConfigError, NcrError, Transient
from ncr_worker.settings import Settings
from ncr_worker.stores.packets import BatchPacketizer, BufferedSocket

KEEPALIVE = 15
_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux


def open_transport(settings: Settings) -> paramiko.Transport:
    """A connection that is logged in. Raises ConfigError (host key, credentials) and Transient."""
    where = f"{settings.sftp_host}:{settings.sftp_port}"
    try:
        sock = socket.create_connection((settings.sftp_host, settings.sftp_port), timeout=settings.sftp_timeout)
    except OSError as error:
        raise Transient(f"SFTP server {where}: {error}", code="sftp_unreachable", retry_in=2) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _TCP_USER_TIMEOUT is not None:
        # A peer that stops reading would block paramiko's writes for ever: its own timeouts do not cover them.
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(settings.sftp_timeout * 1000))
    transport = paramiko.Transport(BufferedSocket(sock), packetizer_class=BatchPacketizer)
    try:
        _handshake(transport, settings)
    except NcrError:
        transport.close()
        raise
    except paramiko.AuthenticationException as error:
        transport.close()
        raise ConfigError(
            "SFTP_USER",
            f"{where} refuses {settings.sftp_user}",
            "Check the user and SFTP_PASSWORD or SFTP_KEY_PATH",
            code="sftp_auth_failed",
        ) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        transport.close()
        raise Transient(f"SFTP server {where}: {error}", code="sftp_unreachable", retry_in=2) from error
    transport.set_keepalive(KEEPALIVE)
    return transport


def _handshake(transport: paramiko.Transport, settings: Settings) -> None:
    options = transport.get_security_options()
    # AES-GCM first: encryption and checksum in one pass, half again as fast.
    options.ciphers = sorted(options.ciphers, key=lambda cipher: "gcm" not in cipher)
    transport.banner_timeout = transport.auth_timeout = settings.sftp_timeout
    transport.start_client(timeout=settings.sftp_timeout)
    seen = fingerprint(transport)
    if seen not in settings.sftp_host_keys:
        pinned = ", ".join(settings.sftp_host_keys) or "none is pinned"
        raise ConfigError(
            "SFTP_HOST_KEYS",
            f"{settings.sftp_host} shows the host key {seen}, which is not pinned ({pinned})",
            "Ask the server's owner for its fingerprint; only if it is this one, add it",
            code="sftp_host_key",
        )
    if settings.sftp_key_path:
        transport.auth_publickey(settings.sftp_user, _private_key(settings.sftp_key_path))
    else:
        transport.auth_password(settings.sftp_user, settings.sftp_password.get_secret_value(), fallback=False)


def _private_key(path: str) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except (OSError, ValueError, paramiko.SSHException) as error:
        raise ConfigError("SFTP_KEY_PATH", f"cannot read {path} ({error})", "Name a private key file") from error


def fingerprint(transport: paramiko.Transport) -> str:
    """Of the server's host key, as `ssh-keygen -l` prints it."""
    return transport.get_remote_server_key().fingerprint
