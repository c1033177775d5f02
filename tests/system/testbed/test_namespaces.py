"""Network namespaces are made and removed on a machine that never had one."""

import subprocess
import sys

_FIRST_NAMESPACE = """
import sys
from clustermesh.testbed import namespaces

namespaces.create("cm-first")
assert namespaces.named("cm-") == ["cm-first"]
assert "lo" in namespaces.run("cm-first", ["ip", "link", "show", "up"])
namespaces.remove("cm-first")
namespaces.release_registry()
"""


def test_the_first_namespace_of_a_machine_needs_no_preparation() -> None:
    bare = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"]
    done = subprocess.run([*bare, sys.executable, "-c", _FIRST_NAMESPACE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
