"""The command-line tools. They know files and the configuration, not the server that runs.

To understand one, read its table of commands, then the module that a row names.

    quorateutl      the offline tool, etcd's `etcdutl`: its commands as a table, and `main`
    commandline     commands and flags as cobra reads them, and their help texts
    completion      completion scripts for shells, made from such a table
    printing        answers as simple, fields, json, protobuf or table
    progress        bars for long work, on a terminal
    files           files mapped to be read, locks, and what is wrong with paths
    status          `snapshot status`, `hashkv`
    restore         `snapshot restore`
    rewriting       `defrag`: a backend file written again
    checking        `check`: all of a data directory
    untouched       a disk for who only looks
"""
