"""Builds hello.wasm: `pip install componentize-py==0.25.0 && python build.py [OUT]`.

The interfaces of WASI come from the crate that the Rust examples use.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

here = pathlib.Path(__file__).resolve().parent
out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else here / "hello.wasm").resolve()

metadata = subprocess.run(
    ["cargo", "metadata", "--format-version", "1", "--locked"],
    cwd=here.parent / "hello",
    check=True,
    stdout=subprocess.PIPE,
).stdout
crate = next(p for p in json.loads(metadata)["packages"] if p["name"] == "wasip2")
interfaces = pathlib.Path(crate["manifest_path"]).parent / "wit" / "deps"

with tempfile.TemporaryDirectory() as work:
    wit = pathlib.Path(work, "wit")
    shutil.copytree(interfaces, wit / "deps")
    shutil.copy(here / "world.wit", wit)
    shutil.copy(here / "app.py", work)
    command = ["componentize-py", "-d", wit, "-w", "hello", "componentize", "app", "-o", out]
    subprocess.run(command, cwd=work, check=True, env=os.environ)
