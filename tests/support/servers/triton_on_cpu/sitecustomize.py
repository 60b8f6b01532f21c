"""Let vLLM's CPU build run its second model runner by Triton's interpreter: Python reads this file at its start.

Its folder has to be on `PYTHONPATH`. vLLM looks for a Triton backend called `cpu`, which the released Triton does not
have. The interpreter (`TRITON_INTERPRET=1`) needs none.
"""

from types import SimpleNamespace

from triton.backends import backends

backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)  # pyright: ignore
