"""Becomes another program: takes on an identity, asks the kernel for a signal when the launcher dies, and execs.

Run as a script, `python -I -S child.py PARENT SIGNAL IDENTITY PROGRAM ARGUMENT…`, and not as a function between fork
and exec: the launcher has threads, and Python code after a fork of threads can deadlock.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from pathlib import Path

UNPRIVILEGED = 65534
"""`nobody`, nearly everywhere."""

CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
IDENTITIES = {
    "same": "the launcher's own user",
    "nobody": "an unprivileged user",
    "nobody+search": "an unprivileged user that may read below folders closed to it",
    "nobody+override": "an unprivileged user that may pass folders closed to it, where the former isn't granted",
    "namespace": "the launcher's own user under another number, without its privileges",
}

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 4
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWUSER = 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


def owner(identity: str) -> tuple[int, int]:
    """User and group that a folder must belong to for a program of this identity to own it."""
    return (UNPRIVILEGED, UNPRIVILEGED) if identity.startswith("nobody") else (os.geteuid(), os.getegid())


def become(identity: str) -> None:
    """Takes on the identity, for good; raises OSError where the machine doesn't allow it."""
    if identity == "same":
        return
    if identity == "namespace":
        _enter_user_namespace()
        return
    capability = {"nobody": None, "nobody+search": CAP_DAC_READ_SEARCH, "nobody+override": CAP_DAC_OVERRIDE}[identity]
    os.setgroups([])
    if capability is not None:
        # The change of user takes no capability away, and access(2), by which initdb looks for its binaries, counts
        # them too, which it wouldn't do for a user that isn't root.
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
    """A user number, not root's, that has a name: initdb asks for one."""
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
    if os.getppid() != parent:  # it died before the kernel knew of our wish
        sys.exit(1)


def _checked(status: int) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    parent, signal_number, identity, *command = sys.argv[1:]
    become(identity)
    _die_with_parent(int(parent), int(signal_number))  # last: a change of identity forgets the wish
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
