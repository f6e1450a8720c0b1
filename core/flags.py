"""Every flag that etcd 3.3 to 3.7 knows: how it is read, its default, what becomes of it here.

Rules:
1. `role` says what becomes of a flag. USED: `core.config.Config` has its field. LATER: it has no
   effect yet, and one warning at start names it. FIXED: the same, but its default is what the
   server does, so only other values are named. REFUSED: to ignore it would weaken security or
   change data, so any value but the default stops the start. IGNORED: etcd itself only warns of it.
   META: handled before everything else.
2. Values are read as Go's flag package and etcd's own types read them, and the texts of errors are
   theirs, because scripts match them. A reader raises ValueError with that text; the caller says
   which flag it was.
3. Durations are seconds, bytes are bytes, and URLs and lists are tuples of strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

Value = str | int | float | bool | tuple[str, ...]
Reader = Callable[[str], Value]

USED, LATER, FIXED, REFUSED, IGNORED, META = "used", "later", "fixed", "refused", "ignored", "meta"

# Go's strconv.ParseBool.
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
# Go's time.ParseDuration.
DURATION_UNITS = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0,
}  # fmt: skip
DURATION_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
# Go counts durations in 64-bit nanoseconds.
DURATION_SECONDS_MAX = 2**63 / 1e9
URL_SCHEMES = ("http", "https", "unix", "unixs")


def read_string(text: str) -> str:
    """The text itself."""
    return text


def read_bool(text: str) -> bool:
    """What Go's ParseBool accepts."""
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError("parse error")


def integer(low: int, high: int) -> Callable[[str], int]:
    """A reader of integers in Go's base 0: `10`, `0x10`, `0b10`, `0o10`, `010`, `1_000`."""

    def read(text: str) -> int:
        digits = text.lstrip("+-") if low < 0 else text
        if not digits.isascii() or not digits[:1].isdigit() or len(text) - len(digits) > 1:
            raise ValueError("parse error")
        try:
            octal = digits[0] == "0" and (digits[1:2].isdigit() or digits[1:2] == "_")
            value = int(digits, 8 if octal else 0)
        except ValueError:
            raise ValueError("parse error") from None
        value = -value if text[0] == "-" else value
        if not low <= value <= high:
            raise ValueError("value out of range")
        return value

    return read


def read_duration(text: str) -> float:
    """Seconds of Go's `10ms`, `1m30s`, `-1.5h` or `0`."""
    sign = -1.0 if text[:1] == "-" else 1.0
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    seconds, place = 0.0, 0
    while part := DURATION_PART.match(rest, place):
        seconds += float(part[1]) * DURATION_UNITS[part[2]]
        place = part.end()
    if not rest or place != len(rest) or seconds >= DURATION_SECONDS_MAX:
        raise ValueError("parse error")
    return sign * seconds


def duration_text(milliseconds: int) -> str:
    """The duration as Go shows it: `1h0m0s`, `1.5s`, `20ms`."""
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{shown}"
    return f"{minutes}m{shown}" if minutes else shown


def read_url(text: str) -> str:
    """One URL of scheme http, https, unix or unixs, checked as etcd's types.NewURLs checks it."""
    url = text.strip()
    scheme, found, rest = url.partition("://")
    if not found and url[:1].isdigit() and ":" in url.partition("/")[0]:
        raise ValueError(f'parse "{url}": first path segment in URL cannot contain colon')
    scheme = scheme.lower()
    if not found or scheme not in URL_SCHEMES:
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {url}")
    if scheme in ("unix", "unixs"):
        return f"{scheme}://{rest}"
    address, slash, _ = rest.partition("/")
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise ValueError(f'URL address does not have the form "host:port": {url}')
    if port and not (port.isascii() and port.isdigit()):
        raise ValueError(f'parse "{url}": invalid port ":{port}" after host')
    if slash:
        raise ValueError(f"URL must not contain a path: {url}")
    return f"{scheme}://{rest}"


def read_urls(text: str) -> tuple[str, ...]:
    """Comma-separated URLs, sorted and without repetition, as etcd keeps them."""
    return tuple(sorted({read_url(part) for part in text.split(",")}))


def read_urls_or_none(text: str) -> tuple[str, ...]:
    """The same, where the empty string means that there is none."""
    return read_urls(text) if text else ()


def read_list(text: str) -> tuple[str, ...]:
    """Comma-separated strings without repetition, in the order given."""
    return tuple(dict.fromkeys(text.split(","))) if text else ()


def choice(*allowed: str) -> Callable[[str], str]:
    """A reader that accepts only the strings given."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError("invalid value")
        return text

    return read


def host_and_port(url: str) -> tuple[str, int]:
    """The parts of an http or https URL that `read_url` accepted; brackets of IPv6 removed."""
    host, _, port = url.partition("://")[2].rpartition(":")
    return host.strip("[]"), int(port or "0")


TEXT, BOOL, SECONDS, LIST = read_string, read_bool, read_duration, read_list
INT, UINT, UINT32 = integer(-(2**63), 2**63 - 1), integer(0, 2**64 - 1), integer(0, 2**32 - 1)
URLS, URLS_OR_NONE = read_urls, read_urls_or_none


class Flag(NamedTuple):
    """One flag."""

    name: str
    read: Reader
    default: str
    role: str
    meaning: str

    @property
    def field(self) -> str:
        """Its attribute in `Config`."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "ETCD_" + self.field.upper()


# One section of `--help` each; names, defaults and order are etcd's.
ROWS: dict[str, tuple[tuple[str, Reader, str, str, str], ...]] = {
    "Member": (
        ("name", TEXT, "default", USED, "name of this member"),
        ("data-dir", TEXT, "", USED, "data directory; ${name}.etcd if empty"),
        ("wal-dir", TEXT, "", USED, "directory of the write-ahead log; in data-dir if empty"),
        ("snapshot-count", UINT, "10000", USED, "entries between two snapshots"),
        ("snapshot-catchup-entries", UINT, "5000", LATER, "entries kept for slow followers"),
        ("heartbeat-interval", UINT, "100", USED, "milliseconds between two heartbeats"),
        ("election-timeout", UINT, "1000", USED, "milliseconds without a leader to an election"),
        ("initial-election-tick-advance", BOOL, "true", LATER, "elect sooner at start"),
        ("listen-peer-urls", URLS, "http://localhost:2380", LATER, "where to listen for members"),
        ("listen-client-urls", URLS, "http://localhost:2379", USED, "where to listen for clients"),
        ("listen-client-http-urls", URLS_OR_NONE, "", LATER, "a separate port for HTTP only"),
        ("max-snapshots", UINT, "5", USED, "snapshot files to keep; 0 = all"),
        ("max-wals", UINT, "5", USED, "log files to keep; 0 = all"),
        ("memory-mlock", BOOL, "false", FIXED, "keep the database in memory"),
        ("quota-backend-bytes", INT, "0", USED, "alarm above this size; 0 = 2 GiB, < 0 = never"),
        ("backend-bbolt-freelist-type", TEXT, "map", LATER, "array or map"),
        ("backend-batch-interval", SECONDS, "0s", LATER, "longest time before a commit"),
        ("backend-batch-limit", INT, "0", LATER, "most operations before a commit"),
        ("max-txn-ops", UINT, "128", USED, "most operations in a transaction"),
        ("max-request-bytes", UINT32, "1572864", USED, "largest request of a client"),
        ("max-concurrent-streams", UINT32, "4294967295", USED, "most streams of one connection"),
        ("grpc-keepalive-min-time", SECONDS, "5s", USED, "shortest time between client pings"),
        ("grpc-keepalive-interval", SECONDS, "2h", USED, "time between our pings; 0 = none"),
        ("grpc-keepalive-timeout", SECONDS, "20s", USED, "wait for a ping's answer; 0 = never"),
        ("socket-reuse-port", BOOL, "false", FIXED, "share ports with other processes"),
        ("socket-reuse-address", BOOL, "false", FIXED, "bind to an address in TIME_WAIT"),
        ("enable-grpc-gateway", BOOL, "true", LATER, "serve JSON"),
        ("raft-read-timeout", SECONDS, "5s", LATER, "read timeout between members"),
        ("raft-write-timeout", SECONDS, "5s", LATER, "write timeout between members"),
        ("feature-gates", TEXT, "", LATER, "Name=true,Name=false"),
        ("storage-version", TEXT, "3.7", USED, "oldest etcd that opens the data: 3.5, 3.6, 3.7"),
        ("workers", UINT32, "0", USED, "client-facing processes; 0 = cores - 1, at least 1"),
    ),
    "Clustering": (
        ("initial-advertise-peer-urls", URLS, "http://localhost:2380", USED, "our peer URLs"),
        ("initial-cluster", TEXT, "default=http://localhost:2380", USED, "name=url[,name=url]"),
        ("initial-cluster-state", choice("new", "existing"), "new", USED, "new or existing"),
        ("initial-cluster-token", TEXT, "etcd-cluster", USED, "keeps clusters apart"),
        ("advertise-client-urls", URLS, "http://localhost:2379", USED, "our client URLs"),
        ("discovery", TEXT, "", REFUSED, "discovery URL"),
        ("discovery-proxy", TEXT, "", LATER, "HTTP proxy for discovery"),
        ("discovery-fallback", choice("proxy", "exit"), "exit", LATER, "when discovery fails"),
        ("discovery-token", TEXT, "", REFUSED, "discovery token"),
        ("discovery-endpoints", LIST, "", REFUSED, "discovery endpoints"),
        ("discovery-dial-timeout", SECONDS, "2s", LATER, "of discovery"),
        ("discovery-request-timeout", SECONDS, "5s", LATER, "of discovery"),
        ("discovery-keepalive-time", SECONDS, "2s", LATER, "of discovery"),
        ("discovery-keepalive-timeout", SECONDS, "6s", LATER, "of discovery"),
        ("discovery-insecure-transport", BOOL, "true", LATER, "of discovery"),
        ("discovery-insecure-skip-tls-verify", BOOL, "false", FIXED, "of discovery"),
        ("discovery-cert", TEXT, "", REFUSED, "of discovery"),
        ("discovery-key", TEXT, "", REFUSED, "of discovery"),
        ("discovery-cacert", TEXT, "", REFUSED, "of discovery"),
        ("discovery-user", TEXT, "", REFUSED, "of discovery"),
        ("discovery-password", TEXT, "", REFUSED, "of discovery"),
        ("discovery-srv", TEXT, "", REFUSED, "DNS domain to find the cluster"),
        ("discovery-srv-name", TEXT, "", LATER, "suffix of the DNS name"),
        ("strict-reconfig-check", BOOL, "true", LATER, "refuse changes that lose quorum"),
        ("pre-vote", BOOL, "true", LATER, "ask before an election"),
        ("auto-compaction-retention", TEXT, "0", USED, "what automatic compaction keeps"),
        ("auto-compaction-mode", TEXT, "periodic", USED, "periodic or revision"),
        ("max-learners", INT, "1", LATER, "most learners in the cluster"),
        ("v2-deprecation", TEXT, "write-only", LATER, "phase of the v2 store's end"),
    ),
    "Security": (
        ("cert-file", TEXT, "", REFUSED, "certificate for clients"),
        ("key-file", TEXT, "", REFUSED, "its key"),
        ("client-cert-file", TEXT, "", REFUSED, "this server's own client certificate"),
        ("client-key-file", TEXT, "", REFUSED, "its key"),
        ("client-cert-auth", BOOL, "false", REFUSED, "ask clients for certificates"),
        ("client-crl-file", TEXT, "", REFUSED, "revoked client certificates"),
        ("client-cert-allowed-hostname", LIST, "", REFUSED, "names allowed in certificates"),
        ("trusted-ca-file", TEXT, "", REFUSED, "who signs client certificates"),
        ("auto-tls", BOOL, "false", REFUSED, "make certificates for clients"),
        ("peer-cert-file", TEXT, "", REFUSED, "certificate for members"),
        ("peer-key-file", TEXT, "", REFUSED, "its key"),
        ("peer-client-cert-file", TEXT, "", REFUSED, "certificate towards members"),
        ("peer-client-key-file", TEXT, "", REFUSED, "its key"),
        ("peer-client-cert-auth", BOOL, "false", REFUSED, "ask members for certificates"),
        ("peer-trusted-ca-file", TEXT, "", REFUSED, "who signs members' certificates"),
        ("peer-cert-allowed-cn", LIST, "", REFUSED, "common names allowed for members"),
        ("peer-cert-allowed-hostname", LIST, "", REFUSED, "host names allowed for members"),
        ("peer-auto-tls", BOOL, "false", REFUSED, "make certificates for members"),
        ("peer-crl-file", TEXT, "", REFUSED, "revoked members' certificates"),
        ("peer-skip-client-san-verification", BOOL, "false", FIXED, "do not check members' SAN"),
        ("self-signed-cert-validity", UINT, "1", LATER, "years that made certificates live"),
        ("cipher-suites", LIST, "", REFUSED, "TLS cipher suites"),
        ("cors", LIST, "*", LATER, "origins allowed"),
        ("host-whitelist", LIST, "*", REFUSED, "host names allowed in HTTP requests"),
        ("tls-min-version", TEXT, "TLS1.2", REFUSED, "oldest TLS"),
        ("tls-max-version", TEXT, "", REFUSED, "newest TLS"),
    ),
    "Auth": (
        ("auth-token", TEXT, "simple", REFUSED, "kind of token: simple or jwt,options"),
        ("auth-token-ttl", UINT, "300", LATER, "seconds that a simple token lives"),
        ("bcrypt-cost", UINT, "10", LATER, "cost of a password's hash, 4 to 31"),
    ),
    "Profiling and Monitoring": (
        ("enable-pprof", BOOL, "false", FIXED, "serve profiles"),
        ("metrics", TEXT, "basic", FIXED, "basic or extensive"),
        ("listen-metrics-urls", URLS_OR_NONE, "", LATER, "more ports for metrics and health"),
        ("enable-distributed-tracing", BOOL, "false", FIXED, "send traces"),
        ("distributed-tracing-address", TEXT, "localhost:4317", LATER, "where to"),
        ("distributed-tracing-service-name", TEXT, "etcd", LATER, "name in traces"),
        ("distributed-tracing-instance-id", TEXT, "", LATER, "instance in traces"),
        ("distributed-tracing-sampling-rate", INT, "0", LATER, "samples per million"),
    ),
    "Logging": (
        ("logger", choice("zap"), "zap", FIXED, "zap"),
        ("log-outputs", LIST, "default", USED, "default, stderr, stdout, paths"),
        ("log-level", TEXT, "info", USED, "debug, info, warn, error, panic or fatal"),
        ("log-format", TEXT, "json", USED, "json or console"),
        ("enable-log-rotation", BOOL, "false", FIXED, "rotate one log file"),
        ("log-rotation-config-json", TEXT, "", LATER, "how to rotate"),
        ("warning-unary-request-duration", SECONDS, "300ms", USED, "slow request: warn"),
        ("warning-apply-duration", SECONDS, "100ms", LATER, "slow apply: warn"),
    ),
    "Checks and tuning": (
        ("corrupt-check-time", SECONDS, "0s", LATER, "time between corruption checks"),
        ("compact-hash-check-time", SECONDS, "1m0s", LATER, "time between hash checks"),
        ("compaction-batch-limit", INT, "1000", LATER, "revisions in one step of compaction"),
        ("compaction-sleep-interval", SECONDS, "10ms", LATER, "pause between two steps"),
        ("watch-progress-notify-interval", SECONDS, "10m0s", USED, "time between progress"),
        ("bootstrap-defrag-threshold-megabytes", UINT, "0", LATER, "defragment at start"),
        ("downgrade-check-time", SECONDS, "5s", LATER, "time between downgrade checks"),
    ),
    "Unsafe": (
        ("force-new-cluster", BOOL, "false", USED, "a new one-member cluster from old data"),
        ("unsafe-no-fsync", BOOL, "false", USED, "no fsync: acknowledged data may be lost"),
    ),
    "Removed from etcd": (
        ("enable-v2", BOOL, "false", FIXED, "the v2 API"),
        ("next-cluster-version-compatible", BOOL, "false", FIXED, "3.4's way up to 3.5"),
        ("proxy", choice("off", "readonly", "on"), "off", REFUSED, "be a v2 proxy"),
        ("proxy-failure-wait", UINT, "5000", LATER, "of the v2 proxy"),
        ("proxy-refresh-interval", UINT, "30000", LATER, "of the v2 proxy"),
        ("proxy-dial-timeout", UINT, "1000", LATER, "of the v2 proxy"),
        ("proxy-write-timeout", UINT, "5000", LATER, "of the v2 proxy"),
        ("proxy-read-timeout", UINT, "0", LATER, "of the v2 proxy"),
        ("ca-file", TEXT, "", REFUSED, "now trusted-ca-file"),
        ("peer-ca-file", TEXT, "", REFUSED, "now peer-trusted-ca-file"),
        ("log-output", TEXT, "default", FIXED, "now log-outputs"),
        ("log-package-levels", TEXT, "", LATER, "now log-level"),
        ("debug", BOOL, "false", FIXED, "now log-level=debug"),
        ("experimental-enable-v2v3", TEXT, "", FIXED, "the v2 API over v3"),
        ("experimental-initial-corrupt-check", BOOL, "false", FIXED, "now a gate"),
        ("experimental-compact-hash-check-enabled", BOOL, "false", FIXED, "now a gate"),
        ("experimental-enable-lease-checkpoint", BOOL, "false", FIXED, "now a gate"),
        ("experimental-enable-lease-checkpoint-persist", BOOL, "false", FIXED, "now a gate"),
        ("experimental-txn-mode-write-with-shared-buffer", BOOL, "true", LATER, "now a gate"),
        ("experimental-stop-grpc-service-on-defrag", BOOL, "false", FIXED, "now a gate"),
    ),
    "Other": (
        ("config-file", TEXT, "", META, "read the configuration from this file only"),
        ("version", BOOL, "false", META, "print the version and exit"),
        ("help", BOOL, "false", META, "print this help and exit"),
        ("h", BOOL, "false", META, "print this help and exit"),
    ),
}  # fmt: skip

USAGE = """\
Usage:

  quorate [flags]
    Start an etcd server.

  quorate --version
    Show the version of etcd that this server is.

  quorate -h | --help
    Show the flags.

  quorate --config-file
    Path to the configuration file. With it, other flags and environment variables are ignored.
"""

# What etcd parses, warns of and forgets.
FORGOTTEN = (
    "cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force",
    "max-result-buffer", "max-retry-attempts", "peer-heartbeat-interval", "peer-election-timeout",
    "retry-interval", "snapshot", "v", "vv",
)  # fmt: skip

# Flags that once began with `experimental-`: etcd 3.7 dropped those names, this server takes both.
GRADUATED = frozenset({
    "snapshot-catchup-entries", "memory-mlock", "backend-bbolt-freelist-type", "corrupt-check-time",
    "warning-unary-request-duration", "warning-apply-duration", "enable-distributed-tracing",
    "distributed-tracing-address", "distributed-tracing-service-name",
    "distributed-tracing-instance-id", "distributed-tracing-sampling-rate",
    "compact-hash-check-time", "compaction-batch-limit",
    "compaction-sleep-interval", "watch-progress-notify-interval", "downgrade-check-time",
    "bootstrap-defrag-threshold-megabytes", "peer-skip-client-san-verification",
})  # fmt: skip

SECTIONS = {section: tuple(Flag(*row) for row in rows) for section, rows in ROWS.items()}
FLAGS = {flag.name: flag for section in SECTIONS.values() for flag in section}
FLAGS.update({name: Flag(name, TEXT, "", IGNORED, "") for name in FORGOTTEN})


def find_flag(name: str) -> Flag | None:
    """The flag of that name or, for a former experimental name, the one that took its place."""
    flag = FLAGS.get(name)
    if flag is None and name.startswith("experimental-"):
        short = name.removeprefix("experimental-")
        return FLAGS[short] if short in GRADUATED else None
    return flag


def help_text() -> str:
    """What `--help` prints."""
    lines = [USAGE]
    for section, flags in SECTIONS.items():
        lines.append(f"{section}:")
        for flag in flags:
            lines += [f"  --{flag.name} '{flag.default}'", f"    {described(flag)}"]
        lines.append("")
    return "\n".join(lines)


def described(flag: Flag) -> str:
    """The flag's meaning with what the reader should know of its role."""
    notes = {LATER: " (no effect yet)", FIXED: " (no effect yet)", REFUSED: " (not supported yet)"}
    return flag.meaning + notes.get(flag.role, "")


def quoted(text: str) -> str:
    """The text as Go's %q shows it."""
    import json

    return json.dumps(text, ensure_ascii=False)
