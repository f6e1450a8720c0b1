"""quorate: an etcd server several times faster than etcd."""
