"""What mkdocs is told beside docs/: pages that lie elsewhere in the repository, the page of commands, and their links.

Each page is written once, where people who read the repository look for it; here its links are made those of the site.
Tutorials are notebooks, shown with the outputs that are stored in them.
"""

from __future__ import annotations

import posixpath
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import jinja2
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from emformer_hub.cli import main

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "finetune/README.md": "finetune.md",
    "integrations/fiji/README.md": "fiji.md",
    "integrations/snakemake/README.md": "snakemake.md",
    "integrations/nextflow/README.md": "nextflow.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{
        f"model_cards/{folder.name}/README.md": f"models/{folder.name}.md"
        for folder in sorted((ROOT / "model_cards").iterdir())
    },
    **{
        f"docs/tutorials/{notebook.name}": f"tutorials/{notebook.stem}.md"
        for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
    },
}
"""Where a page lies in the repository, and on the site."""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]*)(#[^)\s]*)?\)")
PICTURES = (".png", ".gif", ".svg", ".webp")
TUTORIAL = """
{%- extends "markdown/index.md.j2" -%}
{%- block data_png -%}
![{{ output.metadata["image/png"].alt }}]({{ output.metadata.filenames["image/png"] }})
{%- endblock -%}
{%- block stream -%}
<div class="printed" markdown>

```text
{{ output.text | trim }}
```

</div>
{%- endblock -%}
"""
"""How a notebook becomes a page: pictures by the words that describe them, printed text told from code."""

COMPARED = """
<div class="compare" markdown>

![Cubic interpolation of sections of eight planes, x and z.](../../docs/gallery/fib25-x8-cubic.png)
![The same plane by {name}.](../../docs/gallery/fib25-x8-{name}.png)

</div>

*Left of the slider cubic interpolation, right of it {name}, in the same volume; [more](../../docs/gallery.md).*
"""
"""What the page of a model shows on the site alone, before its section on use."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and the pictures that pages show."""
    for place, page in ELSEWHERE.items():
        if place.endswith(".ipynb"):
            text, pictures = tutorial(ROOT / place)
            for name, picture in pictures.items():
                files.append(File.generated(config, f"tutorials/{name}", content=picture))
        else:
            text = re.sub(r"\A---\n.*?\n---\n", "", (ROOT / place).read_text(), flags=re.S)
        if page.startswith("models/"):
            text = text.replace("\n## Use\n", COMPARED.format(name=Path(page).stem) + "\n## Use\n")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "commands.md", content=commands()))
    shown = {picture for place in [*ELSEWHERE, *_own(files)] for picture in _pictures(place)}
    for picture in sorted(shown):
        if files.get_file_from_path(_on_site(picture)) is None:
            files.append(File.generated(config, _on_site(picture), abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages, or into addresses where there is none."""
    here = page.file.src_uri
    place = next((place for place, name in ELSEWHERE.items() if name == here), f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        begin, target, anchor = found[1], found[2], found[3] or ""
        if not target or ":" in target:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        if not (ROOT / path).exists():
            return found[0]  # mkdocs names it
        name = _on_site(path)
        if files.get_file_from_path(name) is None:
            return f"{begin}{config.repo_url}/blob/v{version('emformer-hub')}/{path}{anchor})"
        return f"{begin}{posixpath.relpath(name, posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(link, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the dialog for searching, which the theme leaves without a name for those who do not see it."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def tutorial(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook, and its pictures by name."""
    exporter = MarkdownExporter(
        extra_loaders=[jinja2.DictLoader({"tutorial.md.j2": TUTORIAL})], template_file="tutorial.md.j2"
    )
    stored = nbformat.read(notebook, as_version=4)
    text, resources = exporter.from_notebook_node(stored, {"unique_key": notebook.stem})
    whole = f'<a href="{notebook.name}" download>This page as a notebook</a>'
    return f"{text}\n\n{whole}\n", resources.get("outputs", {})


def _own(files: Files) -> list[str]:
    return [f"docs/{file.src_uri}" for file in files.documentation_pages() if (ROOT / "docs" / file.src_uri).exists()]


def _pictures(place: str) -> list[str]:
    """Pictures that a page shows, by their path in the repository."""
    targets = [found[2] for found in LINK.finditer((ROOT / place).read_text()) if found[2].endswith(PICTURES)]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(place), one)) for one in targets if ":" not in one]


def _on_site(path: str) -> str:
    """Name on the site of a file of the repository."""
    return ELSEWHERE.get(path) or path.removeprefix("docs/")


def commands() -> str:
    """The page of all commands: what ``--help`` prints, in its order."""
    sections = ["# Commands\n\nWhat `emformer-hub COMMAND --help` prints.\n"]
    for name in main.list_commands(click.Context(main)):
        command: Any = main.get_command(click.Context(main), name)
        group = [(name, command)]
        if isinstance(command, click.Group):
            group += [(f"{name} {part}", command.commands[part]) for part in sorted(command.commands)]
        for title, one in group:
            context = click.Context(one, info_name=f"emformer-hub {title}", max_content_width=88, terminal_width=88)
            sections.append(f"## {title}\n\n```text\n{one.get_help(context)}\n```\n")
    return "\n".join(sections)
