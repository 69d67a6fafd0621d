"""What imports what: NNI is for the adapters only, and they bring nothing heavy by themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tips_nni

WITHOUT_NNI = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nni":
            raise ImportError("NNI is not there")

sys.meta_path.insert(0, Block())
import tips_nni
names = [m.name for m in pkgutil.walk_packages(tips_nni.__path__, "tips_nni.") if "__main__" not in m.name]
others = [name for name in names if not name.startswith("tips_nni.adapters")]
assert len(others) > 50, others
for name in others:
    importlib.import_module(name)
try:
    from tips_nni.adapters import TIPS
except ImportError as error:
    print(error)
"""

LIGHT = """
import sys
import tips_nni.adapters
print(sorted({name.partition(".")[0] for name in sys.modules} & {"nni", "torch", "timm", "pytorch_lightning", "scipy"}))
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_everything_else_works_without_nni() -> None:
    assert run(WITHOUT_NNI) == "NNI is not there"


def test_the_package_itself_is_light() -> None:
    assert run(LIGHT) == "[]"


def test_no_other_package_names_nni() -> None:
    root = Path(tips_nni.__file__).parent
    for path in root.rglob("*.py"):
        if "adapters" not in path.parts:
            text = path.read_text()
            assert "\nimport nni" not in text, path
            assert "\nfrom nni" not in text, path
