from typing_extensions import Buffer

def judge(
    method: int,
    message: Buffer,
    txn_ops_max: int = 128,
    request_bytes_max: int = 1572864,
) -> int: ...
