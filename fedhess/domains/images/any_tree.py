"""Any folder of images, PATH/DOMAIN/CLASS/image, as a benchmark: ``--domains folder:PATH``."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.domains.benchmark import Benchmark, OptionValue
from fedhess.domains.images.layout import Tree, composed, folders_by_name, images_in, no_image, some, subfolders
from fedhess.domains.images.release import SIDE, tree_benchmark
from fedhess.domains.opening import Opening

SIDES = (8, 1024)  # pixels; what a network for images can take
LEAST = {"domains": 3, "classes": 2}  # names of each: two domains to learn from, one to leave out
EXPECTED = "expected ROOT/DOMAIN/CLASS/image"


def open_folder_tree(opening: Opening) -> Benchmark:
    """Open a folder of domains, each a folder of classes; every domain must have the same classes.

    Hidden files and folders, and files that are not images, are ignored. Names may be in any script. Domains, classes
    and images may be links.

    Args:
        opening: ``data_dir`` is the folder. Options: ``side`` (pixels that images are resized to, 224); ``domains`` and
            ``classes``, names separated by slashes (with them, only the ``held`` domains are looked for);
            ``data_dir`` and ``skip_bad_images``, which override the arguments.
    """
    opening, options = settle_tree(opening)
    root, side = opening.data_dir or Path(), int(options["side"])
    domains, classes = (_split_names(options[key]) for key in ("domains", "classes"))
    tree: Tree = {}
    if not domains:
        if opening.held is not None and not root.is_dir():
            raise UsageError(
                f"there is no folder {root} here; name what it holds elsewhere: --run-config "
                "'domains-options=\"domains=A/B/C,classes=X/Y\"'"
            )
        tree = read_tree(root)
        domains, classes = tuple(tree), tuple(next(iter(tree.values())))
    elif held := domains if opening.held is None else opening.held:
        tree = read_tree(root, domains=held, classes=classes)
    return tree_benchmark(
        f"folder:{root.resolve().name}",
        tree,
        domains=domains,
        classes=classes,
        side=side,
        opening=opening,
        options={
            "data_dir": str(root.resolve()),
            "skip_bad_images": opening.skip_bad_images,
            "side": side,
            "domains": "/".join(domains),
            "classes": "/".join(classes),
        },
    )


def settle_tree(opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
    """Check the options; see `Opening.settled`."""
    opening, options = opening.settled(skip_bad_images=opening.skip_bad_images, side=SIDE, domains="", classes="")
    side = int(options["side"])
    if not SIDES[0] <= side <= SIDES[1]:
        raise UsageError(f"{opening.benchmark}: side must be {SIDES[0]} to {SIDES[1]} pixels, got {side}")
    counts = {key: len(_split_names(options[key])) for key in LEAST}
    if any(counts.values()) and any(counts[key] < least for key, least in LEAST.items()):
        raise UsageError(
            f"{opening.benchmark}: expected neither or both of domains=A/B/C, at least {LEAST['domains']}, and "
            f"classes=X/Y, at least {LEAST['classes']}; got domains={options['domains']}, classes={options['classes']}"
        )
    return opening, options


def read_tree(root: Path, *, domains: Sequence[str] = (), classes: Sequence[str] = ()) -> Tree:
    """Read the folders of a tree and check its structure.

    Args:
        root: The folder of the domains.
        domains: Domains to read, given with ``classes``; by default all domains there, and their classes.
        classes: The classes that each domain must have, without others.

    Returns:
        Domains and classes by name; every domain has the same classes and every class an image.
    """
    found = folders_by_name(root)
    if not domains:
        _require_domains(found, root)
    elif missing := [domain for domain in domains if domain not in found]:
        raise UsageError(f"folder {root}: no domain {some(missing)}, found {', '.join(found) or 'none'}; {EXPECTED}")
    read = {name: folders_by_name(found[name]) for name in sorted(domains or found)}
    expected = sorted(classes or {name for names in read.values() for name in names})
    if len(expected) < LEAST["classes"]:
        raise UsageError(
            f"folder {root}: {EXPECTED} with at least two classes, found {', '.join(expected) or 'none'}; are images "
            "in the folders of domains, where the folders of classes are expected?"
        )
    lines = ""
    for domain, names in read.items():
        for what, different in (("lacks", set(expected) - set(names)), ("alone has", set(names) - set(expected))):
            lines += f"\n  {domain!r} {what} {some(sorted(different))}" if different else ""
    if lines:
        raise UsageError(
            f"folder {root}: every domain must have the same classes, {len(expected)} in all; add them, or take them "
            f"away everywhere:{lines}"
        )
    for domain, names in read.items():
        for name, folder in names.items():
            first = next(images_in(folder), None)
            if first is None:
                raise no_image(domain, name, folder)
            if first.parent != folder:
                raise UsageError(
                    f"expected images in {folder}, found {first.relative_to(folder)} in a folder below; is the tree "
                    f"one level deeper? {EXPECTED}"
                )
    return {domain: {name: [names[name]] for name in expected} for domain, names in read.items()}


def _split_names(text: OptionValue) -> tuple[str, ...]:
    """Split names at slashes, which no folder's name contains; sorted as in `read_tree`."""
    return tuple(sorted({composed(name) for name in str(text).split("/") if name}))


def _require_domains(domains: Mapping[str, Path], root: Path) -> None:
    """Check that there are enough domains, and check their names."""
    if len(domains) < LEAST["domains"]:
        inner = next(iter(domains.values()), root)
        deeper = len(domains) == 1 and any(map(subfolders, subfolders(inner)))
        raise UsageError(
            f"folder {root}: {EXPECTED} with at least three domains (two to learn from, one to leave out), found "
            f"{len(domains)}: {', '.join(domains) or 'none'}{f'; did you mean folder:{inner}?' if deeper else ''}"
        )
    require_domain_names(domains, f"folder {root}")


def require_domain_names(domains: Iterable[str], where: str) -> None:
    """Check that names of domains are valid for ``--target`` and distinct as folders."""
    folders: dict[str, str] = {}
    for domain in domains:
        key = re.sub(r"[^\w.]+", "-", domain.lower()).strip("-")
        if "," in domain or "+" in domain or not key.strip(".") or key in folders:
            twin = "has a comma or a plus" if key.strip(".") else "has nothing but signs"
            if key in folders:
                twin = f"differs from {folders[key]!r} only in signs or case"
            raise UsageError(f"{where}: the name of domain {domain!r} {twin}; rename it")
        folders[key] = domain
