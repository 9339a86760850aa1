"""Becomes a server that cannot outlive its parent: `python tether.py PARENT_PID USER PROGRAM…` (USER may be empty).

Done after the fork in a program of its own, because Python code between fork and exec is unsafe in a parent that
has threads. The user is changed before the tie is made: the kernel drops the tie when credentials change. From
then on nothing can be imported: the user may have no access to this interpreter's library.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1


def become(user: str) -> None:
    account = pwd.getpwnam(user)
    os.initgroups(user, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def main() -> None:
    parent, user, *command = sys.argv[1:]
    if user:
        become(user)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # the parent died before the tie was made
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
