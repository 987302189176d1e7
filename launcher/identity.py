"""Replaces itself by another program: takes on an identity, asks the kernel for a signal when the launcher dies, and execs.

It is run as a script, `python -I -S identity.py PARENT SIGNAL IDENTITY PROGRAM ARGUMENT…`, and not as a function between fork and
exec: the launcher has threads, and Python code can deadlock after the fork of a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from pathlib import Path

UNPRIVILEGED = 65534
"""The number of the user `nobody` on nearly every system."""

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
IDENTITIES = {
    "same": "the launcher's own user",
    "nobody": "an unprivileged user",
    "nobody+search": "an unprivileged user that may read in folders closed to it",
    "nobody+override": "an unprivileged user that may read and write in folders closed to it",
    "namespace": "the launcher's own user under another number, without its privileges",
}
"""The identities of a child, each with its description; "nobody+override" is for systems that don't grant "nobody+search"."""

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 4
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWUSER = 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


def owner(identity: str) -> tuple[int, int]:
    """The user and group that must own a folder so that a program of this identity owns it."""
    return (UNPRIVILEGED, UNPRIVILEGED) if identity.startswith("nobody") else (os.geteuid(), os.getegid())


def become(identity: str) -> None:
    """Takes on the identity irrevocably; raises OSError where the system doesn't allow it."""
    if identity == "same":
        return
    if identity == "namespace":
        _enter_user_namespace()
        return
    capability = {"nobody": None, "nobody+search": CAP_DAC_READ_SEARCH, "nobody+override": CAP_DAC_OVERRIDE}[identity]
    os.setgroups([])
    if capability is not None:
        # With this bit the change of user keeps the capabilities, and access(2), by which initdb finds its binaries, considers
        # them, which it otherwise does for root alone.
        _checked(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    os.setgid(UNPRIVILEGED)
    os.setuid(UNPRIVILEGED)
    if capability is not None:
        _keep_only(capability)


def _keep_only(capability: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    mask = 1 << capability
    low_and_high_words = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    _checked(_libc.capset(header, low_and_high_words))
    _checked(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0))


def _known_user() -> int:
    """A user number other than root's that has a name, which initdb requires."""
    known = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0]
    return UNPRIVILEGED if UNPRIVILEGED in known or not known else known[0]


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_CLONE_NEWUSER))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_known_user()} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{UNPRIVILEGED} {group} 1")


def _die_with_parent(parent: int, signal_number: int) -> None:
    if sys.platform == "linux":
        _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))
    if os.getppid() != parent:  # the launcher died before the signal was asked for
        sys.exit(1)


def _checked(status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    parent, signal_number, identity, *command = sys.argv[1:]
    become(identity)
    _die_with_parent(int(parent), int(signal_number))  # last, since a change of identity cancels it
    os.execv(command[0], command)  # noqa: S606 - a shell isn't needed


if __name__ == "__main__":
    main()
