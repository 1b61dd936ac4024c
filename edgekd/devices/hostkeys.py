"""The keys by which hosts are known: found without logging in, compared, and written down."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgekd.errors import DeviceError, IntegrityError, UsageError
from edgekd.values.board import Board

_CONNECT_S = 10  # for a network to answer at all
_WHOLE_S = 30.0  # jump hosts, which log in, included
_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_LINE = re.compile(r"(?:(@[\w-]+) )?(\S+) ([\w@.-]+) ([A-Za-z0-9+/=]+)(?: (.*))?")
_QUIET = (  # a question would wait for ever, and no key of the user's goes to a host that is not known yet
    *("-o", "BatchMode=yes", "-o", "PreferredAuthentications=none", "-o", "PubkeyAuthentication=no"),
    *("-o", "PasswordAuthentication=no", "-o", "KbdInteractiveAuthentication=no"),
    *("-o", "HostbasedAuthentication=no", "-o", "GSSAPIAuthentication=no"),
    *("-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "ForwardAgent=no", "-o", "ClearAllForwardings=yes"),
    *("-o", "PermitLocalCommand=no", "-o", "VerifyHostKeyDNS=no", "-o", "LogLevel=ERROR"),
)  # fmt: skip
_WRITE_DOWN = (
    *("-o", "StrictHostKeyChecking=accept-new", "-o", "UpdateHostKeys=no", "-o", "HashKnownHosts=no"),
    *("-o", "CheckHostIP=no", "-o", "GlobalKnownHostsFile=/dev/null"),
)


@dataclass(frozen=True, kw_only=True)
class HostKey:
    """A key, and the name under which ssh looks it up."""

    name: str  # host, [host]:port, or the HostKeyAlias of the user's configuration
    kind: str  # ssh-ed25519, ...
    blob: str  # base64

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint as ssh shows it: SHA256:..."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def host_key(board: Board, *, wanted: str = "") -> HostKey:
    """Fetch a host's key through the user's SSH configuration, without logging in, and compare it with what is known.

    A jump host on the way is logged into, as the configuration says, and must be known already.

    Args:
        board: how it is reached; its `known_hosts` is compared with beside the user's.
        wanted: the fingerprint that one of the host's keys must have; empty: any.

    Raises:
        UsageError: `wanted` is no fingerprint.
        DeviceError: the host cannot be reached.
        IntegrityError: it has another key than the one wanted, or than the one that is known.

    """
    if wanted and not _FINGERPRINT.fullmatch(wanted):
        mend = (
            "write SHA256: and 43 letters, as `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints there"
        )
        raise UsageError("--fingerprint is not a SHA256 fingerprint", mend=mend)
    offered = [_fetched(board)]
    known, revoked, file = _known(board, offered[0].name)
    if wanted and offered[0].fingerprint != wanted:
        offered += _others(board, offered[0].kind)
    elif known and offered[0].kind not in {one.kind for one in known}:
        offered += _others(board, offered[0].kind, among=[one.kind for one in known])
    for key in offered:
        familiar = not known or any((one.kind, one.blob) == (key.kind, key.blob) for one in known)
        if familiar and key.blob not in revoked and wanted in ("", key.fingerprint):
            return key
    raise _another(board, offered, known, wanted, file)


def keep(file: Path, key: HostKey, name: str) -> None:
    """Write a board's key to a known_hosts file that is edgekd's own, in place of what stood there for the board."""
    with _alone(file):
        lines = [line for line in _lines(file) if not line.endswith(_mark(name))]
        _write(file, [*lines, f"{key.name} {key.kind} {key.blob}{_mark(name)}"])


def drop(file: Path, name: str) -> None:
    """Take a board's key out of edgekd's own known_hosts file."""
    if not file.is_file():
        return
    with _alone(file):
        _write(file, [line for line in _lines(file) if not line.endswith(_mark(name))])


def printable(text: str, most: int = 300) -> str:
    """Make what another machine says fit for a terminal: one line of limited length, no control characters."""
    words = " ".join(text.split())[:most]
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)


def _fetched(board: Board, kinds: str = "") -> HostKey:
    """Let ssh write the key down in a file of its own, and end before it has logged in."""
    with TemporaryDirectory(prefix="edgekd-") as scratch:
        file, errors = Path(scratch) / "known_hosts", Path(scratch) / "errors"
        chosen = ("-o", f"HostKeyAlgorithms={kinds}") if kinds else ()
        own = ("-o", f"UserKnownHostsFile={file}", "-o", f"ConnectTimeout={_CONNECT_S}")
        _run(["ssh", "-N", "-T", *_QUIET, *_WRITE_DOWN, *own, *chosen, *_where(board)], errors)
        for line in _lines(file):
            if found := _LINE.fullmatch(line):
                return HostKey(name=found[2], kind=found[3], blob=_sound(found[4]))
        said = errors.read_bytes()[:4096].decode("utf-8", "replace") if errors.exists() else ""
    raise _unreachable(board, printable(said))


def _others(board: Board, first: str, among: Sequence[str] = _TYPES) -> list[HostKey]:
    """Fetch the host's keys of other kinds, so many as it has."""
    found = []
    for kind in dict.fromkeys(among):
        if kind != first and kind in _TYPES:
            algorithm = "rsa-sha2-512,rsa-sha2-256" if kind == "ssh-rsa" else kind
            try:
                found.append(_fetched(board, algorithm))
            except DeviceError:  # it has none of that kind
                continue
    return found


def _known(board: Board, name: str) -> tuple[list[HostKey], set[str], Path | None]:
    """Return what known_hosts files hold for a name, the keys that they revoke, and the first file that has any."""
    found, revoked, first = [], set(), None
    for file in _known_hosts_files(board):
        for line in _looked_up(name, file):
            parts = _LINE.fullmatch(line)
            if parts is None or parts[1] == "@cert-authority":
                continue
            first = first or file
            if parts[1] == "@revoked":
                revoked.add(parts[4])
            else:
                found.append(HostKey(name=name, kind=parts[3], blob=_sound(parts[4])))
    return found, revoked, first


def _known_hosts_files(board: Board) -> Iterator[Path]:
    """Yield the files that the user's SSH configuration names for this host, and edgekd's own."""
    for line in _told(["ssh", "-G", *_where(board)]):
        key, _, value = line.partition(" ")
        if key in ("userknownhostsfile", "globalknownhostsfile"):
            yield from (path for text in value.split() if (path := _expanded(text)).is_file())
    if board.known_hosts is not None and board.known_hosts.is_file():
        yield board.known_hosts


def _expanded(text: str) -> Path:
    try:
        return Path(text.strip('"')).expanduser()
    except RuntimeError:  # nobody's home
        return Path(text)


def _looked_up(name: str, file: Path) -> Iterator[str]:
    """Let ssh-keygen find a name's lines: it knows hashed names, patterns and lists."""
    for line in _told(["ssh-keygen", "-F", name, "-f", str(file)]):
        if not line.startswith("#"):
            yield line.strip()


def _another(
    board: Board, offered: Sequence[HostKey], known: Sequence[HostKey], wanted: str, file: Path | None
) -> IntegrityError:
    shown = ", ".join(f"{key.kind} {key.fingerprint}" for key in offered)
    held = wanted or ", ".join(f"{key.kind} {key.fingerprint}" for key in known) or "it marked as revoked"
    whose = "--fingerprint asks for" if wanted else f"{file} has"
    mend = "ask who keeps the machine; if its key was really changed, "
    mend += "give the new fingerprint" if wanted else f"run: ssh-keygen -R {offered[0].name} -f {file}"
    what = f"the host key of {board.destination} is another than the {'wanted' if wanted else 'known'} one"
    return IntegrityError(what, cause=f"it shows {shown}; {whose} {held}", mend=mend)


def _unreachable(board: Board, said: str) -> DeviceError:
    mend = "check that the board is on and that this works: " + " ".join(["ssh", *_where(board), "true"])
    return DeviceError(
        f"{board.destination} shows no host key", cause=said or "it does not answer", mend=mend
    )


def _where(board: Board) -> list[str]:
    port = ["-p", str(board.port)] if board.port is not None else []
    config = ["-F", str(board.ssh_config)] if board.ssh_config is not None else []
    return [*config, *port, "--", board.destination]


def _run(command: Sequence[str], errors: Path) -> None:
    """Run ssh without a terminal to ask at, and end it in time; whatever it says goes to a file."""
    quiet = {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}
    try:
        with (
            errors.open("wb") as said,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=quiet,
                start_new_session=True,
            ) as process,
        ):
            try:
                process.wait(_WHOLE_S)
            except subprocess.TimeoutExpired:
                said.write(f"no answer within {_WHOLE_S:.0f} s".encode())
            finally:
                process.kill()
    except FileNotFoundError as error:
        raise _no_client(error) from error


def _told(command: Sequence[str]) -> list[str]:
    """Run a program of OpenSSH that reaches nothing, and return its lines.

    Raises:
        DeviceError: there is none, or it hangs, as a `Match exec` of the configuration may.

    """
    try:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WHOLE_S, check=False
        )
    except FileNotFoundError as error:
        raise _no_client(error) from error
    except subprocess.TimeoutExpired as error:
        mend = f"see what keeps `{' '.join(command)}`"
        raise DeviceError(f"{command[0]} does not answer", cause=str(error), mend=mend) from error
    return ran.stdout.decode("utf-8", "replace").splitlines()


def _no_client(error: FileNotFoundError) -> DeviceError:
    mend = "install OpenSSH's client, such as `apt install openssh-client`"
    return DeviceError(f"there is no `{error.filename}` on this machine", mend=mend)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep other processes from writing the file meanwhile."""
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(file.with_name(f".{file.name}.lock"), timeout=_CONNECT_S, mode=0o600):
        yield


def _sound(blob: str) -> str:
    try:
        base64.b64decode(blob, validate=True)
    except binascii.Error as error:
        raise IntegrityError("the host key that ssh wrote down is not base64", cause=str(error)) from error
    return blob


def _mark(name: str) -> str:
    """Return the comment that says whose line it is."""
    return f" edgekd:{name}"


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def _write(file: Path, lines: Iterable[str]) -> None:
    from edgekd.store.files import replacing

    with replacing(file) as partial:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for line in lines))
