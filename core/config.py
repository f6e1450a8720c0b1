"""Command line, environment or file become one frozen `Config`.

Rules:
1. A flag beats its environment variable, which beats the default; a config file replaces both.
2. `UsageError` is a command line that can't be read: its text and the usage, exit code 2. `Fatal`
   is a configuration that can't be served: one line, exit code 1. Texts are etcd's if it has any.
3. What the user asked for and does not get is never silent: flags without effect end in one
   warning, flags that protect data or secrets end the start.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from quorate.core.compactor import Retention, read_retention
from quorate.core.configfile import read_file
from quorate.core.errors import Fatal
from quorate.core.flags import (
    FIXED,
    FLAGS,
    IGNORED,
    LATER,
    META,
    REFUSED,
    Flag,
    Value,
    find_flag,
    host_and_port,
    quoted,
    read_bool,
    read_url,
)
from quorate.core.limits import (
    ELECTION_MILLISECONDS_MAX,
    QUOTA_BYTES_DEFAULT,
    QUOTA_BYTES_RECOMMENDED_MAX,
    REQUEST_BYTES_MAX_DEFAULT,
    REQUEST_BYTES_RECOMMENDED_MAX,
    TXN_OPS_MAX_DEFAULT,
)
from quorate.core.version import STORAGE_VERSIONS

LOG_LEVELS = ("debug", "info", "warn", "error", "dpanic", "panic", "fatal")


class UsageError(Exception):
    """The command line can't be read; the text says what and where."""


class Warned(NamedTuple):
    """A line for the log, once there is one."""

    message: str
    fields: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the server obeys; one field per flag of role USED. Durations are seconds unless said."""

    name: str = "default"
    data_dir: str = "default.etcd"
    wal_dir: str = ""
    snapshot_count: int = 10_000
    max_snapshots: int = 5  # 0 = all
    max_wals: int = 5  # 0 = all
    storage_version: str = "3.7"
    heartbeat_interval: int = 100  # milliseconds
    election_timeout: int = 1000  # milliseconds
    listen_client_urls: tuple[str, ...] = ("http://localhost:2379",)
    quota_backend_bytes: int = 0  # as given; see quota_bytes
    max_txn_ops: int = TXN_OPS_MAX_DEFAULT
    max_request_bytes: int = REQUEST_BYTES_MAX_DEFAULT
    max_concurrent_streams: int = 2**32 - 1
    grpc_keepalive_min_time: float = 5.0
    grpc_keepalive_interval: float = 7200.0  # 0 = never ping
    grpc_keepalive_timeout: float = 20.0  # 0 = never close
    workers: int = 1
    initial_advertise_peer_urls: tuple[str, ...] = ("http://localhost:2380",)
    initial_cluster: str = "default=http://localhost:2380"
    initial_cluster_state: str = "new"
    initial_cluster_token: str = "etcd-cluster"
    advertise_client_urls: tuple[str, ...] = ("http://localhost:2379",)
    auto_compaction_retention: str = "0"  # as given; see auto_compaction
    auto_compaction_mode: str = "periodic"
    log_outputs: tuple[str, ...] = ("default",)
    log_level: str = "info"
    log_format: str = "json"
    warning_unary_request_duration: float = 0.3
    watch_progress_notify_interval: float = 600.0
    force_new_cluster: bool = False
    unsafe_no_fsync: bool = False

    @property
    def wal_path(self) -> str:
        """The directory of the write-ahead log."""
        return self.wal_dir or os.path.join(self.data_dir, "member", "wal")

    @property
    def quota_bytes(self) -> int:
        """The size above which NOSPACE is raised; 0 means never."""
        if self.quota_backend_bytes < 0:
            return 0
        return self.quota_backend_bytes or QUOTA_BYTES_DEFAULT

    @property
    def auto_compaction(self) -> Retention:
        """What automatic compaction keeps."""
        return read_retention(self.auto_compaction_mode, self.auto_compaction_retention or "0")


class Loaded(NamedTuple):
    """A valid configuration and what to tell the user about it."""

    config: Config
    warnings: tuple[Warned, ...]


def parse_arguments(arguments: Sequence[str]) -> dict[str, Value]:
    """Read a command line as Go's flag package does: the flags given, by name, with their values.

    `help` is True as soon as it is met. Raises UsageError.
    """
    given: dict[str, Value] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if len(argument) < 2 or argument[0] != "-":
            raise UsageError(f"'{argument}' is not a valid flag. See 'quorate --help'.")
        body = argument[2:] if argument[:2] == "--" else argument[1:]
        if not body:
            if rest:
                raise UsageError(f"'{rest[0]}' is not a valid flag. See 'quorate --help'.")
            return given
        name, has_value, text = body.partition("=")
        if not name or name[0] == "-":
            raise UsageError(f"bad flag syntax: {argument}")
        flag = find_flag(name)
        if flag is None:
            raise UsageError(f"flag provided but not defined: -{name}")
        if not has_value:
            text = take_value(flag, name, rest)
        try:
            given["help" if flag.name == "h" else name] = flag.read(text)
        except ValueError as error:
            kind = "boolean value" if flag.read is read_bool else "value"
            on = f"{kind} {quoted(text)} for" + (" flag" if kind == "value" else "")
            raise UsageError(f"invalid {on} -{name}: {error}") from None
        if given.get("help"):
            return given
    return given


def take_value(flag: Flag, name: str, rest: list[str]) -> str:
    """The value of a flag that was written without `=`: `true`, or the next argument."""
    if flag.read is read_bool or flag.role == IGNORED:
        return "true"
    if not rest:
        raise UsageError(f"flag needs an argument: -{name}")
    return rest.pop(0)


def load(given: Mapping[str, Value], environ: Mapping[str, str]) -> Loaded:
    """The configuration of a parsed command line and an environment. Raises Fatal."""
    warnings: list[Warned] = []
    path = given.get("config-file") or environ.get("ETCD_CONFIG_FILE", "")
    if path:
        named, unknown = read_file(str(path))
        values = settle_names(named, warnings)
        for name in unknown:
            warnings.append(Warned("unknown name in the configuration file", {"name": name}))
        ignored = sorted({*given, *(name for name in environ if name[:5] == "ETCD_")})
        ignored = [name for name in ignored if name not in ("config-file", "ETCD_CONFIG_FILE")]
        if ignored:
            message = "a configuration file is used: flags and environment variables are ignored"
            warnings.append(Warned(message, {"ignored": ignored}))
    else:
        values = settle_names({**read_environment(environ, given, warnings), **given}, warnings)
    refuse_unsupported(values)
    warn_without_effect(values, warnings)
    config = build(values)
    validate(config, values)
    if not has_log(config):
        verify_bootstrap(config)
    warn_of_sizes(config, warnings)
    return Loaded(config, tuple(warnings))


def read_environment(
    environ: Mapping[str, str], given: Mapping[str, Value], warnings: list[Warned]
) -> dict[str, Value]:
    """The flags that the environment sets; unknown and shadowed variables are warned of."""
    values: dict[str, Value] = {}
    flags_given = {find_flag(name) for name in given}
    for variable in sorted(environ):
        text = environ[variable]
        if not variable.startswith("ETCD_") or not text or variable == "ETCD_UNSUPPORTED_ARCH":
            continue
        name = variable.removeprefix("ETCD_").lower().replace("_", "-")
        flag = find_flag(name)
        if flag is None or flag.role == META:
            shown = {"environment-variable": f"{variable}={text}"}
            warnings.append(Warned("unrecognized environment variable", shown))
        elif flag in flags_given:
            message = "environment variable is shadowed by corresponding command-line flag"
            warnings.append(Warned(message, {"environment-variable": variable}))
        else:
            try:
                values[name] = flag.read(text)
            except ValueError as error:
                raise Fatal(f"invalid value {quoted(text)} for {variable}: {error}") from None
    return values


def settle_names(given: Mapping[str, Value], warnings: list[Warned]) -> dict[str, Value]:
    """The same values under the flags' present names; old and forgotten names are warned of."""
    values: dict[str, Value] = {}
    for name, value in given.items():
        flag = find_flag(name)
        assert flag is not None, f"{name} was read but is not a flag"
        if flag.role == IGNORED:
            message = f'flag "-{name}" is no longer supported - ignoring.'
            warnings.append(Warned(message, {"flag-name": name}))
            continue
        if flag.name != name:
            message = "flag has lost its prefix; use the new name"
            warnings.append(Warned(message, {"flag-name": name, "new-name": flag.name}))
            if flag.name in given:
                continue
        values[flag.name] = value
    return values


def refuse_unsupported(values: Mapping[str, Value]) -> None:
    """End the start if a flag that may not be ignored asks for something."""
    for name, value in values.items():
        flag = FLAGS[name]
        if flag.role == REFUSED and value != flag.read(flag.default):
            shown = "***" if name.endswith("password") else shown_value(value)
            raise Fatal(f"--{name}={shown} is not supported yet, and ignoring it would be unsafe")
    for url in values.get("listen-client-urls") or ():  # type: ignore[union-attr]
        if url.startswith(("https:", "unixs:")):
            raise Fatal(f"--listen-client-urls={url}: TLS is not supported yet")


def shown_value(value: Value) -> str:
    """The value as the user may have written it."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def warn_without_effect(values: Mapping[str, Value], warnings: list[Warned]) -> None:
    """One warning for all flags that were given and have no effect yet."""
    named = [
        f"--{name}"
        for name, value in values.items()
        if FLAGS[name].role == LATER
        or (FLAGS[name].role == FIXED and value != FLAGS[name].read(FLAGS[name].default))
    ]
    if named:
        warnings.append(Warned("flags without effect yet are ignored", {"flags": sorted(named)}))


def build(values: Mapping[str, Value]) -> Config:
    """The Config of the values given, with the defaults that depend on other values."""
    known = {field.name for field in fields(Config)}
    used = {FLAGS[name].field: value for name, value in values.items()}
    arguments = {name: value for name, value in used.items() if name in known}
    name = str(values.get("name", Config.name))
    # A path with a slash at its end has no name of its own, and no folder that it is in.
    arguments["data_dir"] = os.path.normpath(str(values.get("data-dir") or f"{name}.etcd"))
    if wal_dir := values.get("wal-dir"):
        arguments["wal_dir"] = os.path.normpath(str(wal_dir))
    arguments["workers"] = values.get("workers") or max(1, len(os.sched_getaffinity(0)) - 1)
    peers = arguments.get("initial_advertise_peer_urls", Config.initial_advertise_peer_urls)
    if name != Config.name and values.get("initial-cluster", "") in ("", Config.initial_cluster):
        assert isinstance(peers, tuple)
        listed = name or Config.name
        arguments["initial_cluster"] = ",".join(f"{listed}={url}" for url in peers)
    return Config(**arguments)  # type: ignore[arg-type]


def validate(config: Config, values: Mapping[str, Value]) -> None:
    """etcd's own checks, in etcd's order and words. Raises Fatal."""
    check_bindings(config.listen_client_urls)
    check_bindings(values.get("listen-peer-urls") or ())  # type: ignore[arg-type]
    check_bindings(values.get("listen-metrics-urls") or ())  # type: ignore[arg-type]
    check_hosts("initial-advertise-peer-urls", config.initial_advertise_peer_urls)
    check_hosts("advertise-client-urls", config.advertise_client_urls)
    heartbeat, election = config.heartbeat_interval, config.election_timeout
    if heartbeat == 0:
        raise Fatal(f"--heartbeat-interval must be >0 (set to {heartbeat}ms)")
    if election == 0:
        raise Fatal(f"--election-timeout must be >0 (set to {election}ms)")
    if 5 * heartbeat > election:
        raise Fatal(
            f"--election-timeout[{election}ms] should be at least as 5 times as "
            f"--heartbeat-interval[{heartbeat}ms]"
        )
    if election > ELECTION_MILLISECONDS_MAX:
        raise Fatal(
            f"--election-timeout[{election}ms] is too long, "
            f"and should be set less than {ELECTION_MILLISECONDS_MAX}ms"
        )
    if "listen-client-urls" in values and "advertise-client-urls" not in values:
        raise Fatal(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly"
        )
    if config.storage_version not in STORAGE_VERSIONS:
        raise Fatal(
            f"--storage-version={config.storage_version}: a directory can be kept for "
            f"{', '.join(STORAGE_VERSIONS)}"
        )
    validate_compaction(config)
    validate_log(config)


def validate_compaction(config: Config) -> None:
    """The checks of the two flags of automatic compaction."""
    mode = config.auto_compaction_mode
    if not mode:
        raise Fatal("undefined auto-compaction-mode")
    if mode not in ("periodic", "revision"):
        raise Fatal(f"unknown auto-compaction-mode {quoted(mode)}")
    try:
        _ = config.auto_compaction
    except ValueError as error:
        raise Fatal(str(error)) from None


def validate_log(config: Config) -> None:
    """The checks of the flags that say how to log."""
    if config.log_level not in LOG_LEVELS:
        raise Fatal(f"unrecognized level: {quoted(config.log_level)}")
    if config.log_format not in ("json", "console"):
        raise Fatal(f"unknown log-format option {quoted(config.log_format)}")
    if not config.log_outputs:
        raise Fatal("--log-outputs must name at least one output")
    if "default" in config.log_outputs and len(config.log_outputs) > 1:
        raise Fatal('multi logoutput for "default" is not supported yet')


def check_bindings(urls: Iterable[str]) -> None:
    """A server binds to addresses, not to names that might move; `localhost` excepted."""
    from ipaddress import ip_address

    for url in urls:
        if url.startswith("unix"):
            continue
        host, _ = host_and_port(url)
        if host == "localhost":
            continue
        try:
            ip_address(host.partition("%")[0])
        except ValueError:
            raise Fatal(f"expected IP in URL for binding ({url})") from None


def check_hosts(name: str, urls: Iterable[str]) -> None:
    """Addresses that others are told have a host."""
    for url in urls:
        if not url.startswith("unix") and not host_and_port(url)[0]:
            why = f"unexpected empty host ({url})"
            raise Fatal(f'--{name} {quoted(url)} must be "host:port" ({why})')


def has_log(config: Config) -> bool:
    """Whether the member was started before, so that the initial cluster no longer matters."""
    try:
        return any(name.endswith(".wal") for name in os.listdir(config.wal_path))
    except OSError:
        return False


def verify_bootstrap(config: Config) -> None:
    """The initial cluster is this member alone, at the URLs that it advertises. Raises Fatal."""
    try:
        cluster = read_initial_cluster(config.initial_cluster)
    except ValueError as error:
        raise Fatal(f"error setting up initial cluster: {error}") from None
    verify_local_member(config, cluster)
    if len(cluster) > 1:
        names = ",".join(sorted(cluster))
        raise Fatal(f"a cluster of several members ({names}) is not supported yet")
    if config.initial_cluster_state == "existing":
        raise Fatal("--initial-cluster-state=existing: joining a cluster is not supported yet")


def read_initial_cluster(text: str) -> dict[str, set[str]]:
    """The peer URLs of each member in `name=url,name=url`. Raises ValueError."""
    cluster: dict[str, set[str]] = {}
    for part in filter(None, text.split(",")):
        name, _, url = part.partition("=")
        cluster.setdefault(name.strip(), set()).add(read_url(url))
    return cluster


def verify_local_member(config: Config, cluster: Mapping[str, set[str]]) -> None:
    """The initial cluster has this member, at the URLs that it advertises. Raises Fatal."""
    if config.name not in cluster:
        name = quoted(config.name)
        raise Fatal(f"couldn't find local name {name} in the initial cluster configuration")
    verify_peer_urls(config, sorted(cluster[config.name]))


def verify_peer_urls(config: Config, listed: Sequence[str]) -> None:
    """The initial cluster lists this member at the URLs that it advertises. Raises Fatal."""
    advertised = config.initial_advertise_peer_urls
    missing = {resolved(url) for url in listed} - {resolved(url) for url in advertised}
    if missing:
        shown = ",".join(f"{config.name}={url}" for url in listed if resolved(url) in missing)
        flag = "--initial-advertise-peer-urls=" + ",".join(advertised)
        raise Fatal(f"--initial-cluster has {shown} but missing from {flag}")
    missing = {resolved(url) for url in advertised} - {resolved(url) for url in listed}
    if missing:
        shown = ",".join(url for url in advertised if resolved(url) in missing)
        flag = "--initial-cluster=" + ",".join(f"{config.name}={url}" for url in listed)
        raise Fatal(f"--initial-advertise-peer-urls has {shown} but missing from {flag}")


def resolved(url: str) -> str:
    """The URL with `localhost` as an address: etcd compares what names resolve to."""
    return url.replace("://localhost:", "://127.0.0.1:")


def warn_of_sizes(config: Config, warnings: list[Warned]) -> None:
    """etcd's recommendations."""
    if config.max_request_bytes > REQUEST_BYTES_RECOMMENDED_MAX:
        shown = {
            "max-request-bytes": config.max_request_bytes,
            "recommended-request-bytes": REQUEST_BYTES_RECOMMENDED_MAX,
        }
        warnings.append(Warned("exceeded recommended request limit", shown))
    if config.quota_backend_bytes > QUOTA_BYTES_RECOMMENDED_MAX:
        shown = {
            "quota-size-bytes": config.quota_backend_bytes,
            "quota-maximum-size-bytes": QUOTA_BYTES_RECOMMENDED_MAX,
        }
        warnings.append(Warned("quota exceeds the maximum value", shown))
