"""etcd's messages and service bases, one subpackage per protobuf package.

Everything but `service_base.py`, `decoding.py` and this file is made by `tools/generate-api` from
`tools/proto`.
"""
