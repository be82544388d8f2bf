"""Linux namespaces around a process, by system calls.

What a process of the sandbox sees: a root file system of its own with read-only views of the Python
installation and the system's libraries, one writable folder `/tmp` of a fixed size, its own process
ids, no network device but a loopback that is down, no capability, and a filter on system calls.
The standard library alone: the child loads this without the package.

Source: Linux manual pages user_namespaces(7), pid_namespaces(7), mount_namespaces(7),
pivot_root(2), mount_setattr(2), capabilities(7), seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

# Type checkers take the name for true; importing typing would cost the child milliseconds.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Pairs = Sequence[Sequence[str]]

NOBODY = 65534

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_CLONE_NEW_ANY = 0x7E020000

_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_REC = 16384
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
# statvfs(3) and mount(2) number relatime differently, the rest alike.
_KEPT_FLAGS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | 1024 | 2048
_ST_RELATIME, _MS_RELATIME = 4096, 1 << 21

_SIGKILL = 9
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_DEVICES = ("null", "zero", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any, subject: str = "") -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}({subject}): {os.strerror(number)}")
    return result


def _prctl(option: int, *values: int) -> None:
    padded = [*values, 0, 0, 0, 0][:4]
    _call("prctl", option, *(ctypes.c_ulong(value) for value in padded), subject=str(option))


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    _call(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() if options else None,
        subject=f"{kind or source} on {target}",
    )


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same user may look into this one."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def no_new_privileges() -> None:
    """No program that is started from here on gains rights, setuid ones included."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def enter(binds: Pairs, links: Pairs, disk: int, inodes: int) -> None:
    """Go on as process 1 of new namespaces; the calling process waits for that one and exits.

    Args:
        binds: pairs of a file or folder outside and the place where it is seen, read-only.
        links: pairs of a symbolic link and what it points to.
        disk, inodes: bytes and files that `/tmp` holds.

    Raises:
        OSError: the kernel refuses a step; says which.
    """
    _unshare()
    # The kernel forgets it when credentials change.
    die_with_parent()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(abs(os.waitstatus_to_exitcode(status)))
    die_with_parent()
    _call("sethostname", b"sandbox", 7)
    _build_root(binds, links, disk, inodes)


def _unshare() -> None:
    uid, gid = os.geteuid(), os.getegid()
    mapper = _Mapper() if uid == 0 else None
    flags = _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID
    flags |= _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    try:
        _call("unshare", flags, subject="namespaces")
    except OSError:
        if mapper is not None:
            mapper.leave()
        raise
    if mapper is not None:
        mapper.map()
        return
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
    _write("/proc/self/gid_map", f"{NOBODY} {gid} 1")


class _Mapper:
    """A process of the outer namespace, where root may map `nobody` into the inner one: what
    runs there is then not root's outside either."""

    def __init__(self) -> None:
        ready, self._go = os.pipe()
        self._done, done = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(ready)
            os.close(done)
            return
        os.close(self._go)
        answer = b""
        try:
            if os.read(ready, 1):
                parent = os.getppid()
                for name in ("uid_map", "gid_map"):
                    _write(f"/proc/{parent}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1")
                answer = b"ok"
        except OSError as error:
            answer = str(error).encode()
        finally:
            try:
                os.write(done, answer)
            finally:
                os._exit(0)

    def map(self) -> None:
        os.write(self._go, b"1")
        answer = os.read(self._done, 1000)
        self.leave()
        if answer != b"ok":
            raise OSError(errno.EPERM, f"mapping user {NOBODY}: {answer.decode() or 'no answer'}")

    def leave(self) -> None:
        os.close(self._go)
        os.close(self._done)
        os.waitpid(self._pid, 0)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"writing {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _build_root(binds: Pairs, links: Pairs, disk: int, inodes: int) -> None:
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.chdir("/tmp")
    os.mkdir("old", 0o700)
    _call("pivot_root", b".", b"old", subject="/tmp")
    os.chdir("/")
    for source, target in binds:
        _bind("/old" + source, target)
    for link, target in links:
        os.symlink(target, link)
    for name in _DEVICES:
        _bind(f"/old/dev/{name}", f"/dev/{name}", devices=True)
    _mount_proc()
    os.mkdir("/tmp")
    options = f"size={disk},nr_inodes={inodes},mode=1777"
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)
    _call("umount2", b"/old", _MNT_DETACH, subject="/old")
    os.rmdir("/old")
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir("/tmp")


def _bind(source: str, target: str, devices: bool = False) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    _mount(source, target, None, _MS_BIND | _MS_REC)
    if devices:
        return
    attributes = struct.pack("=QQQQ", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)
    try:
        _call(
            "syscall", ctypes.c_long(_SYS_MOUNT_SETATTR), _AT_FDCWD, os.fsencode(target),
            _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)), subject="mount_setattr",
        )  # fmt: skip
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        # Before Linux 5.12. Flags that the outer mount has cannot be taken away again.
        have = os.statvfs(target).f_flag
        kept = have & _KEPT_FLAGS | (_MS_RELATIME if have & _ST_RELATIME else 0)
        flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        _mount("none", target, None, flags | kept)


def _mount_proc() -> None:
    """Processes of this namespace alone, without the kernel's settings where it can leave them
    out. Containers that hide parts of their own /proc allow none; the sandbox does without."""
    os.mkdir("/proc")
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    for options in ("subset=pid", ""):
        try:
            _mount("proc", "/proc", "proc", flags, options)
        except OSError:
            continue
        return


def become_nobody() -> None:
    """Give up every group, id and capability that the namespace gave."""
    if os.geteuid() != NOBODY:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        # The bounding set can only be emptied by one who has capabilities.
        _drop_bounding_set()
        os.setresuid(NOBODY, NOBODY, NOBODY)
    else:
        _drop_bounding_set()
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _call("capset", header, bytes(24), subject="none")


def _drop_bounding_set() -> None:
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return


# Calls that no function needs and that reach parts of the kernel outside the limits: further
# namespaces and mounts, memory that no limit counts, other processes, keys, and loading code into
# the kernel. Numbers: x86_64, aarch64 (from 424 on they are the same).
_DENIED = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "memfd_create": (319, 279),
    "shmget": (29, 194), "msgget": (68, 186), "mq_open": (240, 180),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "swapon": (167, 224), "swapoff": (168, 225),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "quotactl": (179, 60),
    "syslog": (103, 116), "acct": (163, 89), "personality": (135, 92),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "pidfd_getfd": (438, 438), "mount_setattr": (442, 442), "memfd_secret": (447, 447),
}  # fmt: skip
_CLONE = (56, 220)
_CLONE3 = 435
_SOCKET = (41, 198)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_SOCKET_FAMILIES = (1, 2, 10)  # UNIX, INET, INET6

_LOAD = 0x20
_JUMP_EQUAL = 0x15
_JUMP_GREATER_OR_EQUAL = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def filter_system_calls() -> bool:
    """Refuse the calls above to this process and its children; whether the machine has a filter.

    Needs `no_new_privileges` before it.
    """
    program = _filter_program(os.uname().machine)
    if not program:
        return False
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    holder = ctypes.create_string_buffer(header, len(header))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(holder))
    return True


def _filter_program(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter in BPF, each line (code, lines to skip if true, if false, operand)."""
    if machine not in _ARCHITECTURES or sys.maxsize < 2**32:
        return []
    column, architecture = _ARCHITECTURES[machine]
    refused = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    missing = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        refused,
        (_LOAD, 0, 0, _NUMBER),
        # The x32 interface of x86_64 has numbers of its own.
        (_JUMP_GREATER_OR_EQUAL, 0, 1, 0x40000000),
        missing,
        # Its flags lie in memory, where a filter cannot look; libraries fall back to clone.
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        missing,
    ]
    for numbers in _DENIED.values():
        lines += [(_JUMP_EQUAL, 0, 1, numbers[column]), refused]
    lines += [
        (_JUMP_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_ANY_BIT, 0, 1, _CLONE_NEW_ANY),
        refused,
        (_RETURN, 0, 0, _ALLOW),
        (_JUMP_EQUAL, 0, len(_SOCKET_FAMILIES) + 2, _SOCKET[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
    ]
    for index, family in enumerate(_SOCKET_FAMILIES):
        lines.append((_JUMP_EQUAL, len(_SOCKET_FAMILIES) - index, 0, family))
    return [
        *lines,
        (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    ]
