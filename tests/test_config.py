"""Command line, environment and file: etcd's syntax, etcd's checks, etcd's words."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from quorate.core.config import Config, Loaded, UsageError, load, parse_arguments
from quorate.core.errors import Fatal
from quorate.core.flags import (
    FLAGS,
    GRADUATED,
    REFUSED,
    USED,
    Value,
    find_flag,
    help_text,
    host_and_port,
    read_duration,
    read_urls,
)

ALONE = ["--initial-advertise-peer-urls", "http://10.0.0.1:2380"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default data directory is looked for in the working directory."""
    monkeypatch.chdir(tmp_path)


def loaded(*arguments: str, **environ: str) -> Loaded:
    return load(parse_arguments(arguments), environ)


def config(*arguments: str, **environ: str) -> Config:
    return loaded(*arguments, **environ).config


def refusal(*arguments: str, **environ: str) -> str:
    with pytest.raises(Fatal) as error:
        loaded(*arguments, **environ)
    assert "\n" not in str(error.value)
    return str(error.value)


def usage_error(*arguments: str) -> str:
    with pytest.raises(UsageError) as error:
        parse_arguments(arguments)
    return str(error.value)


def from_file(path: Path, text: str, *arguments: str, **environ: str) -> Loaded:
    path.write_text(text)
    return loaded("--config-file", str(path), *arguments, **environ)


# --- the table ------------------------------------------------------------------------------------


def test_config_has_the_fields_of_the_used_flags() -> None:
    used = {flag.field for flag in FLAGS.values() if flag.role == USED}
    assert used == {field.name for field in fields(Config)}


def test_defaults_of_the_table_and_of_config_are_the_same() -> None:
    plain = config("--workers=1")
    assert plain == Config()
    for flag in FLAGS.values():
        if flag.role == USED and flag.name not in ("workers", "data-dir"):
            assert getattr(plain, flag.field) == flag.read(flag.default), flag.name


def test_every_default_can_be_read() -> None:
    for flag in FLAGS.values():
        flag.read(flag.default)


def test_former_experimental_names_lead_to_the_present_flag() -> None:
    assert all(name in FLAGS for name in GRADUATED)
    assert find_flag("experimental-corrupt-check-time") is FLAGS["corrupt-check-time"]
    assert find_flag("experimental-name") is None


def test_help_names_every_flag() -> None:
    text = help_text()
    assert all(f"  --{flag.name} '" in text for flag in FLAGS.values() if flag.meaning)


# --- syntax ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["--name", "a"], ["--name=a"], ["-name", "a"], ["-name=a"], ["-name=b", "--name=a"]],
)
def test_the_four_forms_of_a_flag(arguments: list[str]) -> None:
    assert parse_arguments(arguments) == {"name": "a"}


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--unsafe-no-fsync"], True),
        (["-unsafe-no-fsync=T"], True),
        (["--unsafe-no-fsync=0"], False),
    ],
)
def test_booleans(arguments: list[str], value: bool) -> None:
    assert parse_arguments(arguments) == {"unsafe-no-fsync": value}


def test_a_value_may_hold_an_equals_sign_and_may_look_like_a_flag() -> None:
    assert parse_arguments(["--initial-cluster=a=http://h:1"]) == {
        "initial-cluster": "a=http://h:1"
    }
    assert parse_arguments(["--name", "--name"]) == {"name": "--name"}


def test_two_dashes_end_the_flags() -> None:
    assert parse_arguments(["--name=a", "--"]) == {"name": "a"}


@pytest.mark.parametrize("argument", ["-h", "--help", "-help", "--h"])
def test_help_ends_the_reading(argument: str) -> None:
    assert parse_arguments([argument, "--bogus"]).get("help") is True


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--bogus"], "flag provided but not defined: -bogus"),
        (["--bogus=1"], "flag provided but not defined: -bogus"),
        (["--name"], "flag needs an argument: -name"),
        (["---x"], "bad flag syntax: ---x"),
        (["-=x"], "bad flag syntax: -=x"),
        (["start"], "'start' is not a valid flag. See 'quorate --help'."),
        (["-"], "'-' is not a valid flag. See 'quorate --help'."),
        (["--", "x"], "'x' is not a valid flag. See 'quorate --help'."),
        (["--unsafe-no-fsync", "true"], "'true' is not a valid flag. See 'quorate --help'."),
        (
            ["--unsafe-no-fsync=maybe"],
            'invalid boolean value "maybe" for -unsafe-no-fsync: parse error',
        ),
        (
            ["--heartbeat-interval=x"],
            'invalid value "x" for flag -heartbeat-interval: parse error',
        ),
        (["--max-txn-ops=-1"], 'invalid value "-1" for flag -max-txn-ops: parse error'),
        (
            ["--max-txn-ops=18446744073709551616"],
            'invalid value "18446744073709551616" for flag -max-txn-ops: value out of range',
        ),
        (
            ["--grpc-keepalive-min-time=5"],
            'invalid value "5" for flag -grpc-keepalive-min-time: parse error',
        ),
        (
            ["--initial-cluster-state=bogus"],
            'invalid value "bogus" for flag -initial-cluster-state: invalid value',
        ),
        (
            ["--listen-client-urls=foo"],
            'invalid value "foo" for flag -listen-client-urls: '
            "URL scheme must be http, https, unix, or unixs: foo",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_gos_words(arguments: list[str], text: str) -> None:
    assert usage_error(*arguments) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("0x10", 16), ("010", 8), ("0b11", 3), ("1_000", 1000), ("0", 0), ("-5", -5), ("+7", 7)],
)
def test_integers_are_gos(text: str, value: int) -> None:
    assert FLAGS["quota-backend-bytes"].read(text) == value


@pytest.mark.parametrize("text", ["", "-", "08", "1.5", "1e3", " 1", "--1", "٣", "_1", "1__0"])
def test_what_is_no_integer(text: str) -> None:
    with pytest.raises(ValueError, match=r"^parse error$"):
        FLAGS["quota-backend-bytes"].read(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10ms", 0.01),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("0", 0.0),
        ("-2s", -2.0),
        ("+1us", 1e-6),
        ("1µs1ns", 1.001e-6),
        ("1h0m0s", 3600.0),
    ],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert read_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "5", "s", "1d", "1 s", "1s ", ".s", "-", "--1s", "999999999h"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^parse error$"):
        read_duration(text)


def test_urls_are_sorted_and_unique() -> None:
    urls = "http://b:1, HTTP://a:1,http://b:1,unix:///run/x,http://[::1]:2"
    assert read_urls(urls) == ("http://[::1]:2", "http://a:1", "http://b:1", "unix:///run/x")
    assert host_and_port("http://[::1]:2") == ("::1", 2)
    assert host_and_port("http://127.0.0.1:2379") == ("127.0.0.1", 2379)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "URL scheme must be http, https, unix, or unixs: "),
        ("ftp://a:1", "URL scheme must be http, https, unix, or unixs: ftp://a:1"),
        ("localhost:2379", "URL scheme must be http, https, unix, or unixs: localhost:2379"),
        ("1.2.3.4:1", 'parse "1.2.3.4:1": first path segment in URL cannot contain colon'),
        ("http://a", 'URL address does not have the form "host:port": http://a'),
        ("http://::1:1", 'URL address does not have the form "host:port": http://::1:1'),
        ("http://a:1/x", "URL must not contain a path: http://a:1/x"),
        ("http://a:b", 'parse "http://a:b": invalid port ":b" after host'),
    ],
)
def test_what_is_no_url(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        read_urls(url)
    assert str(error.value) == text


# --- checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--heartbeat-interval=0"], "--heartbeat-interval must be >0 (set to 0ms)"),
        (["--election-timeout=0"], "--election-timeout must be >0 (set to 0ms)"),
        (
            ["--election-timeout=499"],
            "--election-timeout[499ms] should be at least as 5 times as "
            "--heartbeat-interval[100ms]",
        ),
        (
            ["--election-timeout=50001"],
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
        ),
        (
            ["--listen-client-urls=http://127.0.0.1:1"],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            ["--listen-peer-urls=http://name:1"],
            "expected IP in URL for binding (http://name:1)",
        ),
        (
            ["--listen-client-urls=http://:1", "--advertise-client-urls=http://h:1"],
            "expected IP in URL for binding (http://:1)",
        ),
        (
            ["--advertise-client-urls=http://:1"],
            '--advertise-client-urls "http://:1" must be "host:port" '
            "(unexpected empty host (http://:1))",
        ),
        (["--auto-compaction-mode=foo"], 'unknown auto-compaction-mode "foo"'),
        (["--auto-compaction-mode="], "undefined auto-compaction-mode"),
        (
            ["--auto-compaction-retention=1d"],
            'error parsing CompactionRetention: time: invalid duration "1d"',
        ),
        (
            ["--auto-compaction-retention=-1h"],
            "--auto-compaction-retention=-1h is less than nothing",
        ),
        (["--log-level=loud"], 'unrecognized level: "loud"'),
        (["--log-format=xml"], 'unknown log-format option "xml"'),
        (["--log-outputs=default,stderr"], 'multi logoutput for "default" is not supported yet'),
        (["--log-outputs="], "--log-outputs must name at least one output"),
        (["--config-file=/none"], "open /none: no such file or directory"),
    ],
)
def test_what_cannot_be_served_is_refused_in_etcds_words(arguments: list[str], text: str) -> None:
    assert refusal(*arguments) == text


def test_the_bounds_themselves_are_served() -> None:
    assert config("--election-timeout=500").election_timeout == 500
    assert config("--election-timeout=50000", "--heartbeat-interval=10000").heartbeat_interval


def test_ipv6_and_unix_addresses_are_served() -> None:
    urls = "http://[::1]:1,unix:///run/quorate.sock"
    served = config("--listen-client-urls", urls, "--advertise-client-urls", "http://h:1")
    assert served.listen_client_urls == ("http://[::1]:1", "unix:///run/quorate.sock")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ALONE,
            "--initial-cluster has default=http://localhost:2380 but missing from "
            "--initial-advertise-peer-urls=http://10.0.0.1:2380",
        ),
        (
            ["--name=n1", "--initial-cluster=n2=http://h:1"],
            'couldn\'t find local name "n1" in the initial cluster configuration',
        ),
        (["--name="], 'couldn\'t find local name "" in the initial cluster configuration'),
        (
            [
                "--initial-advertise-peer-urls=http://h:1,http://h:2",
                "--initial-cluster=default=http://h:1",
            ],
            "--initial-advertise-peer-urls has http://h:2 but missing from "
            "--initial-cluster=default=http://h:1",
        ),
        (
            ["--initial-cluster=a=http://h:1,b"],
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
        ),
        (
            ["--initial-cluster=default=http://localhost:2380,b=http://h:1"],
            "a cluster of several members (b,default) is not supported yet",
        ),
        (
            ["--initial-cluster-state=existing"],
            "--initial-cluster-state=existing: joining a cluster is not supported yet",
        ),
    ],
)
def test_the_first_start_checks_the_initial_cluster(arguments: list[str], text: str) -> None:
    assert refusal(*arguments) == text


def test_a_restart_does_not_look_at_the_initial_cluster(tmp_path: Path) -> None:
    wal = tmp_path / "default.etcd" / "member" / "wal"
    wal.mkdir(parents=True)
    (wal / "0000000000000000-0000000000000000.wal").touch()
    assert config("--initial-cluster-state=existing", *ALONE).initial_cluster_state == "existing"


def test_a_name_alone_names_directory_and_cluster() -> None:
    named = config("--name=n1", *ALONE)
    assert named.data_dir == "n1.etcd"
    assert named.initial_cluster == "n1=http://10.0.0.1:2380"


@pytest.mark.parametrize("end", ["", "/", "//", "/."])
def test_directories_lose_the_slash_at_their_end(end: str) -> None:
    named = config(f"--data-dir=/d{end}", f"--wal-dir=w{end}")
    assert (named.data_dir, named.wal_path) == ("/d", "w")


def test_a_name_may_repeat_in_the_initial_cluster() -> None:
    urls = "--initial-advertise-peer-urls=http://h:2,http://h:1"
    cluster = "--initial-cluster=default=http://h:1,default=http://h:2"
    assert config(urls, cluster).initial_advertise_peer_urls == ("http://h:1", "http://h:2")


# --- what has no effect ---------------------------------------------------------------------------


def test_flags_without_effect_share_one_warning() -> None:
    warnings = loaded(
        "--snapshot-catchup-entries=5", "--enable-pprof", "--pre-vote", "--name=default"
    ).warnings
    flags = {"flags": ["--enable-pprof", "--pre-vote", "--snapshot-catchup-entries"]}
    assert [(w.message, w.fields) for w in warnings] == [
        ("flags without effect yet are ignored", flags)
    ]


def test_the_servers_own_ways_are_not_warned_of() -> None:
    same = loaded("--logger=zap", "--enable-v2=false", "--enable-pprof=false", "--proxy=off")
    assert same.warnings == ()


def an_unsafe_value(name: str) -> str:
    """A value of a flag that the server must refuse."""
    flag = FLAGS[name]
    value: Value = flag.read(flag.default)
    return "true" if isinstance(value, bool) else "on" if name == "proxy" else "x"


@pytest.mark.parametrize("name", [flag.name for flag in FLAGS.values() if flag.role == REFUSED])
def test_what_would_be_unsafe_to_ignore_ends_the_start(name: str) -> None:
    value = an_unsafe_value(name)
    shown = "***" if name.endswith("password") else value
    text = f"--{name}={shown} is not supported yet, and ignoring it would be unsafe"
    assert refusal(f"--{name}={value}") == text
    assert refusal(**{FLAGS[name].variable: value}) == text


@pytest.mark.parametrize("name", [flag.name for flag in FLAGS.values() if flag.role == REFUSED])
def test_their_defaults_do_not(name: str) -> None:
    assert loaded(f"--{name}={FLAGS[name].default}").warnings == ()


@pytest.mark.parametrize("scheme", ["https://127.0.0.1:1", "unixs:///x"])
def test_listening_with_tls_is_refused(scheme: str) -> None:
    arguments = ["--listen-client-urls", scheme, "--advertise-client-urls", "https://h:1"]
    assert refusal(*arguments) == f"--listen-client-urls={scheme}: TLS is not supported yet"


def test_flags_that_etcd_forgot_are_warned_of() -> None:
    messages = [warned.message for warned in loaded("--v", "--snapshot=1").warnings]
    assert messages == [
        'flag "-v" is no longer supported - ignoring.',
        'flag "-snapshot" is no longer supported - ignoring.',
    ]


def test_an_experimental_name_counts_and_is_warned_of() -> None:
    given = loaded("--experimental-warning-unary-request-duration=1s")
    assert given.config.warning_unary_request_duration == 1.0
    assert [warned.fields for warned in given.warnings] == [
        {
            "flag-name": "experimental-warning-unary-request-duration",
            "new-name": "warning-unary-request-duration",
        }
    ]


def test_the_present_name_beats_the_experimental_one() -> None:
    old, new = (
        "--experimental-warning-unary-request-duration=1s",
        "--warning-unary-request-duration",
    )
    assert config(old, f"{new}=2s").warning_unary_request_duration == 2.0
    assert config(f"{new}=2s", old).warning_unary_request_duration == 2.0


def test_sizes_above_etcds_advice_are_warned_of() -> None:
    given = loaded("--max-request-bytes=10485761", "--quota-backend-bytes=8589934593")
    assert [warned.message for warned in given.warnings] == [
        "exceeded recommended request limit",
        "quota exceeds the maximum value",
    ]
    assert loaded("--max-request-bytes=10485760", "--quota-backend-bytes=8589934592").warnings == ()


@pytest.mark.parametrize(("given", "quota"), [("0", 2 << 30), ("-1", 0), ("77", 77)])
def test_the_quota_in_bytes(given: str, quota: int) -> None:
    assert config(f"--quota-backend-bytes={given}").quota_bytes == quota


# --- environment ----------------------------------------------------------------------------------


def test_the_environment_counts() -> None:
    given = loaded(ETCD_NAME="n1", ETCD_UNSAFE_NO_FSYNC="true", ETCD_DATA_DIR="", HOME="/")
    assert (given.config.name, given.config.unsafe_no_fsync) == ("n1", True)
    assert given.config.data_dir == "n1.etcd"
    assert given.warnings == ()


def test_a_flag_beats_its_variable_and_says_so() -> None:
    given = loaded("--name=flag", ETCD_NAME="variable")
    assert given.config.name == "flag"
    assert [warned.fields for warned in given.warnings] == [{"environment-variable": "ETCD_NAME"}]


def test_unknown_variables_are_warned_of() -> None:
    given = loaded(ETCD_FOO="1", ETCD_UNSUPPORTED_ARCH="arm64", ETCDCTL_API="3", ETCD_VERSION="x")
    assert [warned.fields for warned in given.warnings] == [
        {"environment-variable": "ETCD_FOO=1"},
        {"environment-variable": "ETCD_VERSION=x"},
    ]


def test_a_bad_variable_is_refused() -> None:
    text = 'invalid value "zz" for ETCD_MAX_TXN_OPS: parse error'
    assert refusal(ETCD_MAX_TXN_OPS="zz") == text


def test_the_environment_requires_advertised_urls_too() -> None:
    text = "--advertise-client-urls is required when --listen-client-urls is set explicitly"
    assert refusal(ETCD_LISTEN_CLIENT_URLS="http://127.0.0.1:1") == text


# --- file -----------------------------------------------------------------------------------------

SAMPLE = """
name: 'n1'
data-dir:
snapshot-count: 10000
heartbeat-interval: 200
election-timeout: 2000
quota-backend-bytes: 77
grpc-keepalive-min-time: 1500000000
warning-unary-request-duration: 2s
listen-client-urls: http://127.0.0.1:1,http://127.0.0.1:2
advertise-client-urls: http://127.0.0.1:1
initial-cluster:
log-outputs: [stderr, /tmp/x]
unsafe-no-fsync: true
client-transport-security:
  cert-file:
  client-cert-auth: false
  auto-tls: false
peer-transport-security:
  key-file:
  allowed-cn:
socket-options:
  reuse-port: false
"""


def test_a_yaml_file(tmp_path: Path) -> None:
    given = from_file(tmp_path / "conf.yml", SAMPLE)
    assert given.config == Config(
        name="n1",
        data_dir="n1.etcd",
        heartbeat_interval=200,
        election_timeout=2000,
        quota_backend_bytes=77,
        grpc_keepalive_min_time=1.5,
        warning_unary_request_duration=2.0,
        listen_client_urls=("http://127.0.0.1:1", "http://127.0.0.1:2"),
        advertise_client_urls=("http://127.0.0.1:1",),
        initial_cluster="n1=http://localhost:2380",
        log_outputs=("stderr", "/tmp/x"),
        unsafe_no_fsync=True,
        workers=given.config.workers,
    )
    assert not given.warnings


def test_a_json_file(tmp_path: Path) -> None:
    text = json.dumps({"name": "n2", "max-txn-ops": 5, "workers": 3})
    given = from_file(tmp_path / "conf.json", text).config
    assert (given.name, given.max_txn_ops, given.workers) == ("n2", 5, 3)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert from_file(tmp_path / "conf", "").config.name == "default"


def test_a_file_replaces_flags_and_environment(tmp_path: Path) -> None:
    given = from_file(tmp_path / "conf", "max-txn-ops: 5", "--name=x", ETCD_HEARTBEAT_INTERVAL="7")
    assert (given.config.name, given.config.heartbeat_interval) == ("default", 100)
    assert [warned.fields for warned in given.warnings] == [
        {"ignored": ["ETCD_HEARTBEAT_INTERVAL", "name"]}
    ]
    (tmp_path / "other").write_text("name: env")
    assert config(ETCD_CONFIG_FILE=str(tmp_path / "other")).name == "env"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("client-transport-security: {cert-file: /x}", "--cert-file=/x is not supported yet"),
        ("client-transport-security: {allowed-hostname: [a, b]}", "hostname=a,b is not supported"),
        (
            "peer-transport-security: {client-cert-auth: true}",
            "--peer-client-cert-auth=true is not",
        ),
        ("peer-transport-security: {allowed-cn: x}", "--peer-cert-allowed-cn=x is not supported"),
        ("client-transport-security: {new-thing: 1}", "unknown security setting"),
        ("client-transport-security: x", "unknown security setting"),
        ("discovery-config: {token: t}", "--discovery-token=t is not supported yet"),
        ("cipher-suites: [a]", "--cipher-suites=a is not supported yet"),
        ("max-txn-ops: many", 'invalid value "many" for max-txn-ops: parse error'),
        ("- a", "expected names and values"),
        ("a: [", "config file"),
        ('{"name": ', "config file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(Fatal) as error:
        from_file(tmp_path / "conf", text)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_names_that_mean_nothing_are_warned_of_unless_they_are_about_security(
    tmp_path: Path,
) -> None:
    text = "nme: x\nname: {a: b}\nclient-transport-security: {allowed-cn: , new-thing: false}"
    given = from_file(tmp_path / "conf", text)
    assert [warned.fields for warned in given.warnings] == [{"name": "nme"}, {"name": "name.a"}]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "conf").write_bytes(b"name: \xff\xfe")
    assert "config file" in refusal("--config-file", str(tmp_path / "conf"))
