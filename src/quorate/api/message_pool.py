"""Where messages are found by their full name."""

import betterproto2

default_message_pool = betterproto2.MessagePool()  # type: ignore[no-untyped-call]
