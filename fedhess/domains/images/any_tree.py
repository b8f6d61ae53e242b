"""Any folder of images, PATH/DOMAIN/CLASS/image, as a benchmark: ``--domains folder:PATH``."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fedhess.base.errors import UsageError
from fedhess.domains.benchmark import Benchmark, OptionValue, leave_one_out
from fedhess.domains.images.image_files import ImageDomain, ImageFile, load_images
from fedhess.domains.images.release import SIDE
from fedhess.domains.images.walking import IMAGE_SUFFIXES, composed, entries, images_in, is_folder, subfolders, walk
from fedhess.domains.opening import Opening

SIDES = (8, 1024)  # pixels; what a network for images can take
LEAST = {"domains": 3, "classes": 2}  # names of each: two domains to learn from, one to leave out
Tree = Mapping[str, Mapping[str, Path]]  # domain -> class -> folder


def open_folder_tree(opening: Opening) -> Benchmark:
    """Open a folder whose folders are domains, and their folders classes; every domain must have the same classes.

    Hidden files and folders do not count, nor files that are no images; names may be in any script; domains, classes
    and images may be links.

    Args:
        opening: ``data_dir`` is the folder. Options: ``side`` (pixels that images are resized to, 224); ``domains`` and
            ``classes``, names separated by slashes, with which only the domains that are ``held`` are looked for;
            ``data_dir`` and ``skip_bad_images``, which overrule the arguments.

    Returns:
        The benchmark, named after the folder; images are 3 x side x side uint8. Its options name domains and classes.

    Raises:
        UsageError: An unknown option, or a folder that is not such a tree; the message says where and how.
    """
    opening, options = settle_tree(opening)
    root, side = opening.data_dir or Path(), int(options["side"])
    domains, classes = (_split_names(str(options[key])) for key in ("domains", "classes"))
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
    return Benchmark(
        name=f"folder:{root.resolve().name}",
        domains=domains,
        classes=classes,
        input_shape=(3, side, side),
        outputs=len(classes),
        default_model="resnet18",
        scenarios=leave_one_out(domains),
        options={
            "data_dir": str(root.resolve()),
            "skip_bad_images": opening.skip_bad_images,
            "side": side,
            "domains": "/".join(domains),
            "classes": "/".join(classes),
        },
        loader=partial(_load, tree=tree, side=side, opening=opening),
    )


def settle_tree(opening: Opening) -> tuple[Opening, dict[str, OptionValue]]:
    """Check the options.

    Args:
        opening: As for `open_folder_tree`.

    Returns:
        The opening with the folder and ``skip_bad_images`` that the options name, and a value for each option.

    Raises:
        UsageError: An unknown option, or a value out of range.
    """
    opening, options = opening.settled(skip_bad_images=opening.skip_bad_images, side=SIDE, domains="", classes="")
    side = int(options["side"])
    if not SIDES[0] <= side <= SIDES[1]:
        raise UsageError(f"{opening.benchmark}: side must be {SIDES[0]} to {SIDES[1]} pixels, got {side}")
    counts = {key: len(_split_names(str(options[key]))) for key in LEAST}
    if any(counts.values()) and any(counts[key] < least for key, least in LEAST.items()):
        raise UsageError(
            f"{opening.benchmark}: expected neither or both of domains=A/B/C, at least {LEAST['domains']}, and "
            f"classes=X/Y, at least {LEAST['classes']}; got domains={options['domains']}, classes={options['classes']}"
        )
    return opening, options


def read_tree(root: Path, *, domains: Sequence[str] = (), classes: Sequence[str] = ()) -> Tree:
    """Read the folders of a tree and check that it is one.

    Args:
        root: The folder of the domains.
        domains: Those to read, with ``classes``; by default all that are there, and their classes.
        classes: What each domain must have, and nothing else.

    Returns:
        Domain -> class -> folder, each by name; every domain has the same classes and every class an image.

    Raises:
        UsageError: The first thing that is not so.
    """
    _require_text(root.resolve())
    found = _named(subfolders(root), where=f"folder {root}")
    if not domains:
        _require_domains(found, root)
    elif missing := [domain for domain in domains if domain not in found]:
        raise UsageError(
            f"folder {root}: no domain {_some(missing)}, found {', '.join(found) or 'none'}; expected "
            "ROOT/DOMAIN/CLASS/image"
        )
    tree = {name: _named(subfolders(found[name]), where=f"domain {name!r}") for name in sorted(domains or found)}
    expected = sorted(classes or {name for names in tree.values() for name in names})
    if len(expected) < LEAST["classes"]:
        raise UsageError(
            f"folder {root}: expected ROOT/DOMAIN/CLASS/image with at least two classes, found "
            f"{', '.join(expected) or 'none'}{_hint(found)}"
        )
    lines = ""
    for domain, names in tree.items():
        for what, different in (("lacks", set(expected) - set(names)), ("alone has", set(names) - set(expected))):
            lines += f"\n  {domain!r} {what} {_some(sorted(different))}" if different else ""
    if lines:
        raise UsageError(
            f"folder {root}: every domain must have the same classes, {len(expected)} in all; add them, or take them "
            f"away everywhere:{lines}"
        )
    for domain, names in tree.items():
        for name, folder in names.items():
            _require_images(folder, f"domain {domain!r}, class {name!r}")
    return {domain: {name: names[name] for name in expected} for domain, names in tree.items()}


def list_class(folder: Path, label: int, name: str) -> list[ImageFile]:
    """List the images of one class of one domain, by name.

    Args:
        folder: Of the class.
        label: Its number.
        name: Of the class.

    Returns:
        The files.

    Raises:
        UsageError: A link leads nowhere, something is no regular file, or an image lies in a folder below.
    """
    files = images_in(folder)
    for path in files:
        _require_direct(path, folder)
    return [ImageFile(path=path, name=f"{name}/{composed(path.name)}", label=label) for path in files]


def _load(domain: str, *, tree: Tree, side: int, opening: Opening) -> ImageDomain:
    files = [
        file for label, (name, folder) in enumerate(tree[domain].items()) for file in list_class(folder, label, name)
    ]
    return load_images(
        domain,
        files,
        side=side,
        skip_bad_images=opening.skip_bad_images,
        cache_dir=opening.cache_dir,
        notify=opening.notify,
    )


def _named(folders: list[Path], *, where: str) -> dict[str, Path]:
    """Key folders by their names, accents composed."""
    named: dict[str, Path] = {}
    for folder in folders:
        _require_text(folder)
        name = composed(folder.name)
        if name in named:
            raise UsageError(f"{where}: {name!r} is there twice, its accents stored in two ways; rename one")
        named[name] = folder
    return named


def _require_text(folder: Path) -> None:
    """Insist on a folder whose name can be written down: tables and records name it, of images they do not."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the name of folder {folder} is not UTF-8; rename it") from error


def _split_names(text: str) -> tuple[str, ...]:
    """Read names separated by slashes, which no folder's name has; in the order that `read_tree` has them."""
    return tuple(sorted({composed(name) for name in text.split("/") if name}))


def _require_domains(domains: Mapping[str, Path], root: Path) -> None:
    """Check for enough domains, whose names ``--target`` can tell apart and that make folders of their own."""
    if len(domains) < LEAST["domains"]:
        found = ", ".join(domains) or "none"
        raise UsageError(
            f"folder {root}: expected ROOT/DOMAIN/CLASS/image with at least three domains (two to learn from, one to "
            f"leave out), found {len(domains)}: {found}{_hint(domains)}"
        )
    folders: dict[str, str] = {}
    for domain in domains:
        if "," in domain or "+" in domain:
            raise UsageError(f"folder {root}: domain {domain!r} has a comma or a plus in its name; rename it")
        key = re.sub(r"[^\w.]+", "-", domain.lower()).strip("-")
        if key in folders:
            raise UsageError(
                f"folder {root}: domains {folders[key]!r} and {domain!r} differ only in signs or case; rename one"
            )
        folders[key] = domain


def _require_images(folder: Path, what: str) -> None:
    """Insist on an image in the folder of a class; the first one found decides, so it is quick."""
    for entry in walk(folder):
        _require_direct(Path(entry.path), folder)
        return
    raise UsageError(f"{what}: {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")


def _require_direct(path: Path, folder: Path) -> None:
    if path.parent != folder:
        raise UsageError(
            f"expected images in {folder}, found {path.relative_to(folder)} in a folder below; is the tree one level "
            "deeper? Expected ROOT/DOMAIN/CLASS/image"
        )


def _hint(domains: Mapping[str, Path]) -> str:
    """Say what the folder seems to be instead, where that can be seen."""
    if len(domains) == 1:
        inner = next(iter(domains.values()))
        names = [folder.name for folder in subfolders(inner)]
        if any(subfolders(inner / name) for name in names):
            return f"; did you mean folder:{inner}?"
    if any(not is_folder(entry) for folder in domains.values() for entry in entries(folder)):
        return "; images lie in the folders of domains, where the folders of classes are expected"
    return ""


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
