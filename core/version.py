"""The versions that quorate reports: of the etcd release whose API and formats it has."""

from __future__ import annotations

# What clients and tools compare; a real release of etcd, because they parse it.
SERVER_VERSION = "3.7.1"
# What all members of the cluster understand.
CLUSTER_VERSION = "3.7.0"
# The schema of the data directory.
STORAGE_VERSION = "3.7.0"
# What the directory can be kept as: the oldest etcd that opens it, and what its file then says.
STORAGE_VERSIONS = {"3.5": "", "3.6": "3.6.0", "3.7": STORAGE_VERSION}
