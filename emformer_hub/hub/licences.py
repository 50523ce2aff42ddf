"""What may be done with weights follows from their base and their data: licences, combined."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emformer_hub.errors import InputError, ModelNotFoundError
from emformer_hub.model_files import model_file
from emformer_hub.pretrained import registry, resolve_pretrained

README = "README.md"
FREE = ("cc0-1.0", "mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "unlicense", "pddl")
"""Licences that ask for no more than a notice."""
CREATIVE_COMMONS = re.compile(r"cc-by((?:-nc|-nd|-sa)*)-(\d\.\d)")


def spdx(licence: str) -> str:
    """A licence as the Hub writes it: ``CC BY 4.0`` is ``cc-by-4.0``."""
    written = re.sub(r"[\s_]+", "-", licence.strip().lower()).replace("public-domain", "cc0-1.0")
    if re.fullmatch(r"cc-by(-nc|-nd|-sa)*", written):
        return f"{written}-4.0"
    return {"cc0": "cc0-1.0", "apache": "apache-2.0", "bsd": "bsd-3-clause"}.get(written, written)


def combined(licences: Iterable[str | None]) -> str | None:
    """The licence of what is made of things under these licences, or ``None`` where that cannot be told.

    Attribution, non-commercial use and sharing alike are handed on, in the newest version. What forbids derivatives and
    licences that are not known here say nothing about weights; licences that ask for a notice leave the choice open.
    """
    found = [CREATIVE_COMMONS.fullmatch(spdx(one or "")) for one in licences if spdx(one or "") not in FREE]
    if not found or any(one is None or "-nd" in one[1] for one in found):
        return None
    terms = [{"by", *one[1].split("-")[1:]} for one in found if one is not None]
    handed_on = set().union(*terms)
    if any("sa" in one and one != handed_on for one in terms):
        return None  # what is to be shared alike cannot be shared on other terms
    version = max(["4.0", *(one[2] for one in found if one is not None)])
    return "-".join(["cc", *(term for term in ("by", "nc", "sa") if term in handed_on), version])


def licence_of_model(name: str) -> str | None:
    """Licence of a model, from the registry or else its page; ``None`` if it states none."""
    source = resolve_pretrained(name)
    for weights in registry().values():
        if source in (weights.repo_id, str(weights.folder)):
            return weights.licence.lower()
    try:
        return licence_on_page(model_file(name, README).read_text())
    except ModelNotFoundError:
        return None


def licence_on_page(text: str) -> str | None:
    """The licence that the front matter of a page states."""
    from huggingface_hub import ModelCard

    data: Any = ModelCard(text, ignore_metadata_errors=True).data
    return data.license or None


def licensed(folder: Path, licence: str | None) -> bytes:
    """The page of a folder to publish, with a licence.

    Args:
        folder: of a model or an adapter.
        licence: to state it on the page, which is written if there is none; ``None``: as the page does.

    Raises:
        InputError: neither states one.
    """
    from huggingface_hub import ModelCard

    path = folder / README
    if not path.is_file() and licence is not None:
        return f"---\nlicense: {spdx(licence)}\nlibrary_name: transformers\n---\n\n# {folder.name}\n".encode()
    text = path.read_text() if path.is_file() else ""
    if licence is None:
        if licence_on_page(text) is None:
            raise InputError(
                f"{path} states no licence, and without one nobody may use the weights. It follows from the base and "
                f"the volumes; give --licence, such as --licence CC-BY-4.0, or write 'license: ...' into the page."
            )
        return text.encode()
    card: Any = ModelCard(text, ignore_metadata_errors=True)
    card.data.license = spdx(licence)
    return str(card).encode()
